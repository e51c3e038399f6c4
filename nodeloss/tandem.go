package nodeloss

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Tandem is what is read of the storage layer, from a node of it.
type Tandem struct {
	status  clusterdomainpb.ClusterClient
	volumes volumepb.VolumesClient
}

// NewTandem returns the Tandem behind a connection to a daemon.
func NewTandem(cc grpc.ClientConnInterface) *Tandem {
	return &Tandem{clusterdomainpb.NewClusterClient(cc), volumepb.NewVolumesClient(cc)}
}

// errBlind means that the daemon does not know which nodes are there.
var errBlind = errors.New("nodeloss: the kvdb does not answer: nobody knows which nodes are lost")

// online tells of each node whether it keeps its registration alive. While the kvdb does not answer nobody can: errBlind.
func (t *Tandem) online(ctx context.Context) (map[string]bool, error) {
	s, err := t.status.GetStatus(ctx, &clusterdomainpb.GetStatusRequest{})
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the state of the cluster: %w", err)
	case !s.GetKvdb().GetHealthy():
		return nil, fmt.Errorf("%w: %s", errBlind, s.GetKvdb().GetError())
	}
	online := map[string]bool{}
	for _, n := range s.GetNodes() {
		online[n.GetName()] = n.GetState() == clusterdomainpb.NodeState_NODE_STATE_ONLINE
	}
	if !online[s.GetThisNode()] {
		return nil, fmt.Errorf("%w: node %s, which was asked, is not registered itself", errBlind, s.GetThisNode())
	}
	return online, nil
}

// list tells of every volume where it is attached and in sync.
func (t *Tandem) list(ctx context.Context) (map[string]Volume, error) {
	l, err := t.volumes.ListVolumes(ctx, &volumepb.ListVolumesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	vs := map[string]Volume{}
	for _, v := range l.GetVolumes() {
		o := Volume{Attached: v.GetAttachment().GetNode()}
		for _, r := range v.GetReplicas() {
			if r.GetInSync() {
				o.InSync = append(o.InSync, r.GetNode())
			}
		}
		vs[v.GetId()] = o
	}
	return vs, nil
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/cmd/internal/doctor"
	"github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
	"github.com/tandem-storage/tandem/replication"
)

// viewWait bounds how long an examination waits for a newer view of the cluster.
const viewWait = 2 * time.Second

// measured is what this node measures from. It fails while the node is starting.
func (d *daemon) measured() (doctor.Node, error) {
	if _, err := d.late.get(); err != nil {
		return doctor.Node{}, err
	}
	n := doctor.Node{
		Peers: d.doctorPeers,
		Dial:  func(p doctor.Peer) (*grpc.ClientConn, error) { return d.dial(p.Name, p.Address) },
		Read:  d.probe,
		Timers: &doctorpb.Timers{
			SuspectUs:   d.c.Replication.SuspectTimeout.Microseconds(),
			OperationUs: d.c.Replication.OpTimeout.Microseconds(),
			LeaseUs:     d.c.Failover.NodeTTL.Microseconds(),
		},
	}
	for _, p := range d.pools.all {
		n.Pools = append(n.Pools, p.Path())
	}
	return n, nil
}

// doctorPeers are the other nodes that are registered.
func (d *daemon) doctorPeers() []doctor.Peer {
	var all []doctor.Peer
	for _, n := range d.domains.View().Nodes {
		if n.Name != d.c.NodeID && n.Online {
			r := d.peers.RTT(replication.NodeID(n.Name))
			all = append(all, doctor.Peer{Name: n.Name, Address: n.Address, P50: r.P50, P99: r.P99, Samples: r.Samples})
		}
	}
	return all
}

// dial returns a connection to another node, for a call now and then; it connects with the first.
func (d *daemon) dial(node, address string) (*grpc.ClientConn, error) {
	cc, err := grpc.NewClient("passthrough:///"+address, d.security.DialOptions(replication.NodeID(node))...)
	if err != nil {
		return nil, fmt.Errorf("node %s: address %q: %w", node, address, err)
	}
	return cc, nil
}

// doctor serves examinations.
func (d *daemon) doctor() *doctor.Server {
	local := doctor.NewMeasurer(d.measured)
	return doctor.NewServer(doctor.ServerOptions{
		View: func(ctx context.Context) *clusterdomain.View {
			ctx, cancel := context.WithTimeout(ctx, viewWait)
			defer cancel()
			_ = d.domains.Refresh(ctx) // else as it was last known; the checks of the kvdb say why
			return d.domains.View()
		},
		Volumes: d.domains.Facts,
		Ask: func(ctx context.Context, n clusterdomain.Node) (_ *doctorpb.MeasureResponse, err error) {
			if n.Name == d.c.NodeID {
				return local.Measure(ctx, &doctorpb.MeasureRequest{})
			}
			cc, err := d.dial(n.Name, n.Address)
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, cc.Close()) }()
			return doctorpb.NewMeasurerClient(cc).Measure(ctx, &doctorpb.MeasureRequest{})
		},
	})
}

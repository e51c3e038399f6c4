package volume

import (
	"fmt"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
)

// checkAttach says who may start a takeover by attaching (protocol.md 5.5). It is policy
// and a clear error: a takeover that should not have begun is as safe as any other.
//
// A volume that is attached elsewhere is taken over only from a coordinator that is not to go on, because its
// domain is out of service, or that does not answer.
func checkAttach(cfg *replication.Config, v *clusterdomain.View, node replication.NodeID) error {
	me, ok := v.Node(string(node))
	if me.Witness {
		return fmt.Errorf("%w: node %s is a witness, which attaches nothing; ask a node with role node", ErrOtherNode, node)
	}
	if s := v.State(me.Domain); ok && !s.MayAttach() {
		return &DomainStateError{Domain: replication.DomainID(me.Domain), State: s}
	}
	if cfg == nil || cfg.Coord == nil || cfg.Coord.Node == node {
		return nil
	}
	other, _ := v.Node(string(cfg.Coord.Node))
	switch s := v.State(string(cfg.Coord.Domain)); {
	case s != clusterdomain.Active && s != clusterdomain.Draining:
		return nil
	case !other.Online:
		return nil
	default:
		return fmt.Errorf("%w: on node %s (domain %s): detach it there first", replication.ErrBusy, cfg.Coord.Node, cfg.Coord.Domain)
	}
}

package volume

import (
	"fmt"
	"strings"

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
	if err := checkInSync(cfg, v); err != nil {
		return err
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

// checkInSync wants an in-sync replica in a domain that is in service: in vain would the takeover wait for the others.
func checkInSync(cfg *replication.Config, v *clusterdomain.View) error {
	if cfg == nil || len(cfg.ISR) == 0 {
		return nil
	}
	var where []string
	for _, r := range cfg.ISR {
		m := cfg.Members[r]
		s := v.State(string(m.Domain))
		if !s.MustStop() {
			return nil
		}
		where = append(where, fmt.Sprintf("node %s (domain %s, %s)", m.Node, m.Domain, s))
	}
	return fmt.Errorf("%w in a domain that is in service, only on %s: activate that domain", replication.ErrNoInSyncReplica, strings.Join(where, ", "))
}

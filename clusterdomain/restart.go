package clusterdomain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
)

// restarts is the record of the nodes that were given leave to restart, with the instance of the daemon that is to end. A node whose daemon
// is another one by now is back.
type restarts map[string]string

// leaving reports whether a node has leave and is not back.
func (r restarts) leaving(n Node) bool {
	was, ok := r[n.Name]
	return ok && (!n.Online || n.Instance == was)
}

// PlanRestart asks for leave to restart the daemon of a node, and notes that it has it: from then on it counts as away, until it has registered
// anew, or cancel is given. waits says why it has to wait, for people; nothing is noted then. members are the nodes of the embedded kvdb.
//
// Leave is given to one node at a time, by compare-and-set, so whoever asks in another cluster of an orchestrator cannot have it for another
// copy of the same volume at once. See docs/design/0034-rolling-update.md for the rules.
func (m *Manager) PlanRestart(ctx context.Context, node string, cancel bool, members []string) (waits []string, err error) {
	for {
		waits, err = m.planRestart(ctx, node, cancel, members)
		if !errors.Is(err, kvdb.ErrConflict) {
			return waits, err
		}
		if !kvdb.Pause(ctx, retryAfter) {
			return nil, err
		}
	}
}

// planRestart tries once. The record is read first: what it is decided by is not older.
func (m *Manager) planRestart(ctx context.Context, node string, cancel bool, members []string) (waits []string, err error) {
	key, r := restartsKey(m.o.Cluster), restarts{}
	kv, err := m.store.Get(ctx, key)
	switch {
	case errors.Is(err, kvdb.ErrNotFound):
		kv.Mod = 0
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", key, err)
	default:
		if err := json.Unmarshal(kv.Value, &r); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, key, err)
		}
	}
	if err := m.Refresh(ctx); err != nil {
		return nil, err
	}
	v := m.View()
	n, ok := v.Node(node)
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrNodeNotFound, node)
	}
	next := restarts{}
	for _, o := range v.Nodes {
		if o.Name != node && r.leaving(o) {
			next[o.Name] = r[o.Name]
		}
	}
	if !cancel {
		vols, err := m.Facts(ctx)
		if err != nil {
			return nil, err
		}
		if waits = restartWaits(v, vols, members, next, n); waits != nil {
			return waits, nil
		}
		next[node] = n.Instance
	}
	if was, ok := r[node]; len(r) == len(next) && ok == !cancel && was == next[node] {
		return nil, nil // as it was
	}
	value, err := encode(next)
	if err != nil {
		return nil, err
	}
	if _, err := kvdb.CompareAndSwap(ctx, m.store, key, kv.Mod, value); err != nil {
		return nil, fmt.Errorf("write %s: %w", key, err)
	}
	return nil, nil
}

// mostWaits bounds the volumes that are named.
const mostWaits = 5

// restartWaits says why node has to wait. others have leave and are not back.
//
// A volume that is detached does not count: nobody waits for it, nothing would bring its other replicas in sync, and its data lie on the disk. Nor does one
// whose only replica, in sync or not, is on the node: there is nothing to wait for.
func restartWaits(v *View, vols []arbiter.Volume, members []string, others restarts, node Node) (waits []string) {
	for o := range others {
		waits = append(waits, fmt.Sprintf("node %s has leave to restart and is not back; if it is not to be restarted: tandemctl cluster plan-restart %s --cancel", o, o))
	}
	slices.Sort(waits)
	there := func(name string) bool {
		n, ok := v.Node(name)
		_, leaving := others[name]
		return ok && n.Online && !leaving
	}
	if slices.Contains(members, node.Name) {
		var away []string
		for _, m := range members {
			if m != node.Name && !there(m) {
				away = append(away, m)
			}
		}
		if left := len(members) - 1 - len(away); len(away) > 0 && left <= len(members)/2 {
			waits = append(waits, "the kvdb would have no majority: its members on "+strings.Join(away, ", ")+" are away, too")
		}
	}
	switch {
	case node.Online && node.Instance == "":
		waits = append(waits, "its daemon is of a version that does not tell whether devices end with it: drain the node and restart it by hand, this once")
	case node.Online && node.Fragile > 0:
		waits = append(waits, fmt.Sprintf("%d volumes are attached there with devices that end with the daemon (front ends fuseloop and nbd): drain the node, or detach them", node.Fragile))
	}
	var last []string
	for _, vol := range vols {
		if why := lastCopy(v, vol, there, node.Name); why != "" {
			last = append(last, fmt.Sprintf("volume %s: %s", vol.Name, why))
		}
	}
	if len(last) > mostWaits {
		last = append(last[:mostWaits], fmt.Sprintf("and %d more volumes", len(last)-mostWaits))
	}
	return append(waits, last...)
}

// lastCopy says why a volume would be without an in-sync copy if node were away, "" if it would not.
func lastCopy(v *View, vol arbiter.Volume, there func(string) bool, node string) string {
	switch {
	case vol.RolledBack != "":
		return "the kvdb knows less of it than a replica does: import it first"
	case vol.Unreadable != "" && len(vol.Replicas) == 0:
		return "its configuration cannot be read: " + vol.Unreadable
	case !vol.Attached() || len(vol.Replicas) < 2:
		return ""
	}
	here, others := false, []string{}
	for _, r := range vol.Replicas {
		switch {
		case r.Node == node:
			here = r.InSync
		case r.InSync && there(r.Node) && !v.State(r.Domain).MustStop():
			return ""
		case r.InSync:
			others = append(others, r.Node+" is away")
		default:
			others = append(others, "that on "+r.Node+" is "+r.State)
		}
	}
	if !here {
		return ""
	}
	return "its last in-sync copy is there; " + strings.Join(others, ", ")
}

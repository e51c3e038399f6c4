// Package nodeloss has the pods of a node that died run elsewhere as soon as its volumes can be attached there.
//
// Kubernetes by itself waits for minutes: until the node is unreachable, until its pods are evicted, and then until nobody hopes any more that its kubelet
// unmounts what they used. It has to, because it cannot know whether the node still writes. Tandem can: a node whose registration in the kvdb
// has ended is fenced by the next attachment, before that reads or writes anything (docs/design/0033-node-loss.md).
package nodeloss

import (
	"maps"
	"slices"
	"time"
)

// World is everything that is decided by.
type World struct {
	Online  map[string]bool // Tandem's nodes that keep their registration alive
	Nodes   []Node
	Pods    []Pod
	Volumes map[string]Volume // by handle; pods and volumes are only needed while a node is lost
}

// Node is a node of Kubernetes where the driver is.
type Node struct {
	Name    string        // in Kubernetes
	Tandem  string        // in Tandem; "": its kubelet does not know the driver
	Silent  time.Duration // since its kubelet was last heard of
	Ignored bool          // opted out
	Marked  bool          // has the taint that keeps pods off it
	InUse   []string      // handles that its kubelet had mounted, by the last that it said
}

// Pod is one that uses volumes of the driver.
type Pod struct {
	Namespace, Name, UID string
	Node                 string
	Handles              []string
	Ignored              bool // opted out, or of a DaemonSet, which would put it back at once
}

// Volume is what the storage layer knows of one.
type Volume struct {
	Attached string   // Tandem's node where it is attached, "" nowhere
	InSync   []string // Tandem's nodes with a replica in sync
}

// Kind of an Action.
type Kind string

// Kinds.
const (
	Mark    Kind = "Mark"    // keep pods off the node
	Unmark  Kind = "Unmark"  // no longer
	Delete  Kind = "Delete"  // a pod, without waiting for its kubelet
	Release Kind = "Release" // the node does not use these volumes any more
)

// Action is what is to be done now.
type Action struct {
	Kind    Kind
	Node    string
	Pod     Pod      // of Delete
	Handles []string // of Release: what the node is said to use afterwards
}

// Decide tells what is to be done, in that order; all of it may be repeated. grace is how long a kubelet has to be silent before its node can be lost.
//
// A node is lost if neither its kubelet nor its tandemd is heard of: one alone is restarted, by people or by itself, under pods that go on. Of a lost node those pods are
// deleted whose volumes can all be attached without it. For the others nothing would be gained: the node has the only copy, or serves
// a volume that somebody else has attached.
func Decide(w *World, grace time.Duration) []Action {
	var all []Action
	for _, n := range w.Nodes {
		switch {
		case n.Marked && (n.Ignored || w.Online[n.Tandem] && n.Silent < grace):
			all = append(all, Action{Kind: Unmark, Node: n.Name})
		case w.lost(n, grace):
			all = append(all, w.leave(n)...)
		}
	}
	return all
}

// leave is what is to be done for a lost node.
func (w *World) leave(n Node) []Action {
	var dead []Action
	used := map[string]bool{} // by pods that stay
	for _, p := range w.Pods {
		if p.Node != n.Name {
			continue
		}
		if p.Ignored || slices.ContainsFunc(p.Handles, func(h string) bool { return !w.free(h, n.Tandem) }) {
			for _, h := range p.Handles {
				used[h] = true
			}
			continue
		}
		dead = append(dead, Action{Kind: Delete, Node: n.Name, Pod: p})
	}
	keep := slices.DeleteFunc(slices.Clone(n.InUse), func(h string) bool { return !used[h] && w.free(h, n.Tandem) })
	if len(keep) < len(n.InUse) {
		dead = append(dead, Action{Kind: Release, Node: n.Name, Handles: keep})
	}
	if len(dead) > 0 && !n.Marked {
		dead = slices.Insert(dead, 0, Action{Kind: Mark, Node: n.Name})
	}
	return dead
}

// free reports whether a volume can be attached without the node.
func (w *World) free(handle, node string) bool {
	v, ok := w.Volumes[handle]
	return ok && (v.Attached == "" || v.Attached == node) &&
		slices.ContainsFunc(v.InSync, func(n string) bool { return n != node && w.Online[n] })
}

func (w *World) lost(n Node, grace time.Duration) bool {
	return n.Tandem != "" && !w.Online[n.Tandem] && n.Silent >= grace && !n.Ignored
}

// silences tells for how long kubelets have been silent, by the clock of this process alone: what counts is when a renewal was seen, not when it says that it was made.
type silences struct {
	seen map[string]sighting
	last time.Time // when anything was seen
}

// unseen is how long nothing may be seen at all. After that who was silent meanwhile is not known.
const unseen = 5 * time.Second

type sighting struct {
	renewed time.Time // as the kubelet says
	at      time.Time // when it was seen
}

// see notes the renewals that are known now and returns the silence of each node. One that was never seen before has not been silent yet.
func (s *silences) see(now time.Time, renewed map[string]time.Time) map[string]time.Duration {
	silent := map[string]time.Duration{}
	if now.Sub(s.last) > unseen {
		s.seen = map[string]sighting{}
	}
	s.last = now
	for n, r := range renewed {
		if old, ok := s.seen[n]; !ok || !old.renewed.Equal(r) {
			s.seen[n] = sighting{r, now}
		}
		silent[n] = now.Sub(s.seen[n].at)
	}
	maps.DeleteFunc(s.seen, func(n string, _ sighting) bool { _, ok := renewed[n]; return !ok })
	return silent
}

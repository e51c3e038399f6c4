// Package rollout carries an update of the chart's daemons from node to node, in all cluster domains, one at a time.
//
// Kubernetes rolls a DaemonSet by itself, but each on its own: of two sites, which are two DaemonSets and perhaps of two Kubernetes, it would restart both copies of a
// volume at once. So the DaemonSets are OnDelete, and this package deletes the pods that are of an old revision, with leave of the storage
// layer for each (docs/design/0034-rolling-update.md).
package rollout

import (
	"cmp"
	"fmt"
	"slices"
)

// Pod is one of tandemd.
type Pod struct {
	Name, UID string
	Node      string // its name in Kubernetes, which it has in Tandem, too
	Current   bool   // of the newest revision
	Ending    bool   // it is being deleted
	Ready     bool
	Running   bool // its tandemd does
	Lost      bool // its kubelet does not say so any more
}

// plan is what is to be done next: one of these is deleted.
type plan struct {
	dead []Pod  // whose tandemd does not run: without asking
	old  []Pod  // with leave of Tandem, in that order
	wait string // why nothing is to be done, though there are old ones; for people
}

// decide tells what is to be done next. missing is how many pods there are too few.
//
// A pod of the newest revision that is not Ready holds everything up: it may be that the update is bad. One of an old revision that is not
// Ready comes first: it may be that the update mends it. Pods of lost nodes wait for their node, and nobody waits for them but Tandem, if it has to.
func decide(pods []Pod, missing int) plan {
	var p plan
	var ill []Pod
	for _, o := range pods {
		switch {
		case o.Lost:
		case o.Ending:
			p.wait = fmt.Sprintf("pod %s on node %s is ending", o.Name, o.Node)
		case o.Current && !o.Ready:
			p.wait = fmt.Sprintf("pod %s on node %s is new and not Ready: if it stays so see its log, and mend or take back the update", o.Name, o.Node)
		case o.Current:
		case !o.Running:
			p.dead = append(p.dead, o)
		case !o.Ready:
			ill = append(ill, o)
		default:
			p.old = append(p.old, o)
		}
	}
	if ill != nil {
		p.old = ill
	}
	switch {
	case p.old == nil:
		p.wait = "" // nothing is to be done
	case p.wait == "" && missing > 0:
		p.wait = fmt.Sprintf("%d pods are missing", missing)
	}
	if p.wait != "" {
		p.old = nil
	}
	for _, l := range [][]Pod{p.dead, p.old} {
		slices.SortFunc(l, func(a, b Pod) int { return cmp.Compare(a.Node, b.Node) })
	}
	return p
}

package arbiter

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// Policy is when a domain that is lost is fenced without an operator (protocol.md 10.3). Times are in nanoseconds.
type Policy struct {
	Enabled     bool
	Confirm     int64 // all conditions have to hold for so long, without a break
	Grant       int64 // a coordinator is silent when nothing was heard of it for so long
	MinInterval int64 // from one automatic failover to the next
	QuorumLoss  int   // per cent of a domain's nodes whose registrations have to be gone, 1 to 100
	AutoPromote bool  // a STANDBY domain may take over, and becomes ACTIVE by it
}

// Sample is one look at the cluster by a node of a domain that would take over. Times are in nanoseconds, of a
// clock that goes on while the machine sleeps; only their differences count.
type Sample struct {
	Now   int64
	Local string // the domain of the node that looks

	// Healthy: this look was linearizable and answered in time. What follows counts only then.
	Healthy bool
	Late    int64  // the look before this one may be so long ago, or the node was not looking
	Term    uint64 // of the kvdb's leader; 0: not known
	Own     string // tells the node's own registration from an earlier or later one, "" if it is gone
	Nodes   []Node // without witnesses
	// Domains are the states of all domains. Volumes may be nil while every node is registered.
	Domains map[string]State
	Volumes []Volume
	// Silence is for how long nothing was heard of a node.
	Silence map[string]int64
	// SinceLast is how long ago the last automatic failover was, negative if there was none.
	SinceLast int64
}

// Node is the registration of a node, as it was when last looked at.
type Node struct {
	Name, Domain string
	Online       bool
	Registration string // tells it from an earlier or later one of the node
}

// Idle says in one machine-readable word why a domain is not fenced now.
type Idle string

// Reasons to stay idle.
const (
	InService        Idle = "in-service"        // its nodes are registered
	OutOfService     Idle = "out-of-service"    // it serves nothing that could be moved
	NoNodes          Idle = "no-nodes"          // no node of it is known
	Disabled         Idle = "disabled"          // by the configuration
	OwnDomain        Idle = "own-domain"        // the domain that would take over may not
	CoordinatorHeard Idle = "coordinator-heard" // a node that has volumes attached answers
	NothingToMove    Idle = "nothing-to-move"   // no volume that is attached there can be moved here
	BackOff          Idle = "back-off"          // the last automatic failover was a moment ago
	KvdbUnhealthy    Idle = "kvdb-unhealthy"    // the registrations may have been lost by the kvdb
	Confirming       Idle = "confirming"        // all conditions hold, not yet for long enough
)

// Move is a volume that is to be attached in another domain, and on which node if that were now.
type Move struct {
	Volume       Volume
	Node, Domain string
}

// Verdict is what becomes of a domain.
type Verdict struct {
	Fence bool
	Idle  Idle  // why not, "" if Fence
	Left  int64 // until the conditions have held for long enough, if Confirming or BackOff; nanoseconds
	Text  string
	// Promote: the domain that takes over is STANDBY and becomes ACTIVE with the same transaction.
	Promote bool
	Gone    []string  // the nodes whose registrations are gone
	GoneFor int64     // all of them
	Silent  int64     // nothing was heard of a node with volumes attached for so long
	Moves   []Move    // what is attached there and goes on elsewhere
	Stay    []Blocked // what is attached there and does not
}

// Lost reports whether the domain may be lost: it is in service and too few of its nodes are registered.
func (v Verdict) Lost() bool {
	return v.Idle != InService && v.Idle != OutOfService && v.Idle != NoNodes
}

// Watch remembers since when what it was shown holds. The zero value has seen nothing.
type Watch struct {
	seen    bool
	last    int64 // Sample.Now of the last look
	healthy int64 // since when, without a break
	sick    bool  // the last look was not healthy
	term    uint64
	own     string
	gone    map[string]absence // by node
}

// absence is a registration that is gone.
type absence struct {
	since        int64
	registration string
}

// See takes one look into account.
func (w *Watch) See(s Sample) {
	if w.gone == nil {
		w.gone = make(map[string]absence)
	}
	if !s.Healthy || s.Own == "" {
		w.sick, w.seen, w.last = true, true, s.Now
		return
	}
	if !w.seen || w.sick || s.Now-w.last > s.Late || s.Term != w.term || s.Own != w.own {
		w.healthy = s.Now
	}
	w.seen, w.sick, w.last, w.term, w.own = true, false, s.Now, s.Term, s.Own
	gone := make(map[string]absence, len(w.gone))
	for _, n := range s.Nodes {
		if n.Online {
			continue
		}
		a, was := w.gone[n.Name]
		if !was || a.registration != n.Registration { // it was there again in between
			a = absence{since: s.Now, registration: n.Registration}
		}
		gone[n.Name] = a
	}
	w.gone = gone
}

// Failover says whether domain is to be fenced by the node that looks, which has shown s to the Watch, and if not why. It is a
// guess: a wrong one costs a needless move. What keeps data safe are the transactions and the replicas.
func (w *Watch) Failover(p Policy, s Sample, domain string) Verdict {
	var v Verdict
	idle := func(why Idle, format string, a ...any) Verdict {
		v.Idle, v.Text = why, fmt.Sprintf(format, a...)
		return v
	}
	if now := s.Domains[domain]; domain == s.Local || !now.MayRun() {
		return idle(OutOfService, "nothing is attached in domain %s that could go on here", domain)
	}
	nodes, since := 0, int64(-1<<63)
	for _, n := range s.Nodes {
		if n.Domain != domain {
			continue
		}
		nodes++
		if a, gone := w.gone[n.Name]; gone && !n.Online {
			v.Gone, since = append(v.Gone, n.Name), max(since, a.since)
		}
	}
	slices.Sort(v.Gone)
	if len(v.Gone) > 0 {
		v.GoneFor = s.Now - since
	}
	switch {
	case nodes == 0:
		return idle(NoNodes, "no node of domain %s is known", domain)
	case !p.lost(len(v.Gone), nodes):
		return idle(InService, "%d of %d nodes of domain %s are registered", nodes-len(v.Gone), nodes, domain)
	case !p.Enabled:
		return idle(Disabled, "automatic failover is turned off (failover.enabled)")
	}
	own := s.Domains[s.Local]
	v.Promote = own == Standby
	if own != Active && !(v.Promote && p.AutoPromote) {
		return idle(OwnDomain, "domain %s is %s and may not take over", s.Local, own)
	}
	silence := v.judge(s, domain)
	v.Silent = silence.ns
	if silence.node != "" && silence.ns < p.Grant {
		return idle(CoordinatorHeard, "node %s, where volumes are attached, still answers node to node", silence.node)
	}
	if !slices.ContainsFunc(v.Moves, func(m Move) bool { return m.Domain == s.Local }) {
		return idle(NothingToMove, "no volume that is attached in domain %s can go on in domain %s", domain, s.Local)
	}
	if s.SinceLast >= 0 && s.SinceLast < p.MinInterval {
		v.Left = p.MinInterval - s.SinceLast
		return idle(BackOff, "the last automatic failover was %d s ago, the next one is not before %d s have passed (failover.minInterval)", seconds(s.SinceLast), seconds(p.MinInterval))
	}
	if w.sick || !w.seen || !s.Healthy {
		return idle(KvdbUnhealthy, "the kvdb did not answer this node in time: whether the nodes of domain %s are gone is not known", domain)
	}
	held := min(s.Now-w.healthy, v.GoneFor, v.Silent-p.Grant)
	if v.Left = max(0, p.Confirm-held); v.Left > 0 {
		return idle(Confirming, "domain %s is fenced in %d s unless it is heard of", domain, seconds(v.Left))
	}
	v.Fence = true
	v.Text = fmt.Sprintf("the registrations of %d of %d nodes are gone for %d s, the kvdb was healthy for %d s, no coordinator there was heard for %d s",
		len(v.Gone), nodes, seconds(v.GoneFor), seconds(s.Now-w.healthy), seconds(v.Silent))
	return v
}

// silent is the node with volumes attached of which something was heard last.
type silent struct {
	node string
	ns   int64 // for how long
}

// judge sorts what is attached in the domain into Moves and Stay.
func (v *Verdict) judge(s Sample, domain string) (least silent) {
	states := make(map[string]State, len(s.Domains))
	maps.Copy(states, s.Domains)
	states[domain] = Fenced
	if v.Promote {
		states[s.Local] = Active
	}
	after := View{Domains: states, Volumes: s.Volumes}
	for _, vol := range s.Volumes {
		if vol.Coordinator.Domain != domain || !vol.Attached() {
			continue
		}
		if n := vol.Coordinator.Node; least.node == "" || s.Silence[n] < least.ns {
			least = silent{n, s.Silence[n]}
		}
		node, in, cause := Target(after, s.Nodes, vol, s.Local)
		if cause != "" {
			v.Stay = append(v.Stay, Blocked{vol, cause})
			continue
		}
		v.Moves = append(v.Moves, Move{vol, node, in})
	}
	return least
}

// Target is the node on which a volume, attached in a domain that was fenced, goes on by itself: one that is online, in a domain that
// may attach it, and has an in-sync replica; in the domain prefer if there is one. Volumes of a group go on in a domain that can go on with
// all of them. Whoever asks about the same state is told the same. cause says why there is none.
func Target(v View, nodes []Node, vol Volume, prefer string) (node, domain string, cause Cause) {
	switch {
	case vol.unknown() != "":
		return "", "", vol.unknown()
	case vol.Unreadable != "":
		return "", "", Unreadable
	case vol.Manual:
		return "", "", ManualFailover
	case lastCopy(v, vol, vol.Coordinator.Domain):
		return "", "", LastCopy
	}
	fit := able(v, nodes, vol)
	if len(fit) == 0 {
		return "", "", NoNode
	}
	if vol.Group != "" {
		if fit = slices.DeleteFunc(fit, func(r Replica) bool { return !hasGroup(v, nodes, vol.Group, r.Domain) }); len(fit) == 0 {
			return "", "", GroupMixed
		}
	}
	best := slices.MinFunc(fit, func(a, b Replica) int {
		if (a.Domain == prefer) != (b.Domain == prefer) {
			if a.Domain == prefer {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Node, b.Node))
	})
	return best.Node, best.Domain, ""
}

// able are the replicas of vol with which it could go on where they are.
func able(v View, nodes []Node, vol Volume) (fit []Replica) {
	for _, r := range vol.Replicas {
		online := func(n Node) bool { return n.Name == r.Node && n.Online }
		if r.InSync && v.Domains[r.Domain].MayAttach() && slices.ContainsFunc(nodes, online) {
			fit = append(fit, r)
		}
	}
	return fit
}

// hasGroup reports whether a domain can go on with every volume of a group: otherwise some of them would go on from now and the others not, or
// from another moment (protocol.md 15.4).
func hasGroup(v View, nodes []Node, group, domain string) bool {
	for _, vol := range v.Volumes {
		there := func(r Replica) bool { return r.Domain == domain }
		if vol.Group == group && (vol.unknown() != "" || vol.Unreadable != "" || !slices.ContainsFunc(able(v, nodes, vol), there)) {
			return false
		}
	}
	return true
}

// lost reports whether so many of a domain's nodes are gone that it may be lost.
func (p Policy) lost(gone, nodes int) bool { return gone > 0 && gone*100 >= p.QuorumLoss*nodes }

// Suspect reports whether a domain other than local, of which volumes could be moved, may be lost.
func (p Policy) Suspect(nodes []Node, domains map[string]State, local string) bool {
	all, gone := map[string]int{}, map[string]int{}
	for _, n := range nodes {
		if n.Domain == local || !domains[n.Domain].MayRun() {
			continue
		}
		all[n.Domain]++
		if !n.Online {
			gone[n.Domain]++
		}
	}
	for d, n := range gone {
		if p.lost(n, all[d]) {
			return true
		}
	}
	return false
}

// Leader is the node of a domain that acts for it: the first one that is registered. Two may take themselves for it for a
// moment; the transaction lets one win.
func Leader(nodes []Node, domain string) string {
	first := ""
	for _, n := range nodes {
		if n.Domain == domain && n.Online && (first == "" || n.Name < first) {
			first = n.Name
		}
	}
	return first
}

func seconds(ns int64) int64 { return (ns + 999_999_999) / 1_000_000_000 }

package core

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
)

// simMetroCheck asserts what is promised of cluster domains (protocol.md 10, I23) beside what simcheck_test.go asserts of each volume. It
// knows what no machine does: what is in force, and who is registered, at the moment of each transaction.
type simMetroCheck struct {
	c       *simMetro
	domains map[string]clusterdomain.Domain // in force
	made    map[simDomainEpoch]clusterdomain.Domain
	last    int64              // the last automatic failover; 0: none
	since   map[string]int64   // since when a machine is registered, or has been gone, by name
	here    map[string]bool    // registered
	ill     map[string][]int64 // when it was out of reach of the kvdb, or that changed its leader, lately
	refused map[string]bool    // orders that were refused, by actor
	givenUp map[string]bool    // orders that give up every volume
	orders  int                // that operators have given
}

// simMetroLate is how long an arbiter may take to look and to act on it: 1 s for the kvdb's health, 2 s for the volumes, 2 s for the transaction (clusterdomain/look.go).
const simMetroLate = 5 * time.Second

// simDomainEpoch names a change of a domain.
type simDomainEpoch struct {
	domain string
	epoch  uint64
}

func (k *simMetroCheck) init(c *simMetro) {
	*k = simMetroCheck{
		c: c, domains: map[string]clusterdomain.Domain{}, made: map[simDomainEpoch]clusterdomain.Domain{},
		since: map[string]int64{}, here: map[string]bool{}, ill: map[string][]int64{}, refused: map[string]bool{}, givenUp: map[string]bool{},
	}
}

// step notes who is registered, and who reaches the kvdb.
func (k *simMetroCheck) step() {
	c := k.c
	for _, m := range c.machines {
		_, err := c.look.Get(context.Background(), "/tandem/"+simCluster+"/node/"+m.name)
		if here := err == nil; here != k.here[m.name] {
			k.here[m.name], k.since[m.name] = here, c.now
		}
		if !m.reaches() {
			k.sick(m)
		}
	}
}

// sick notes that m's kvdb is not healthy now.
func (k *simMetroCheck) sick(m *simMachine) {
	k.ill[m.name] = slices.DeleteFunc(append(k.ill[m.name], k.c.now), func(at int64) bool { return at < k.c.now-30e9 })
}

// healthy is for how long m's kvdb was healthy, without a break, at the moment that suits best from one time to another.
func (k *simMetroCheck) healthy(m *simMachine, from, to int64) time.Duration {
	best, last := int64(0), from
	for _, at := range append(slices.Clone(k.ill[m.name]), to) {
		if at > last {
			best, last = max(best, min(at, to)-last), at
		}
	}
	return time.Duration(best)
}

func (k *simMetroCheck) state(d replication.DomainID) clusterdomain.State {
	return k.domains[string(d)].State
}

// config asserts who may change a volume: nobody takes over in a domain that is not ACTIVE, nobody changes anything in one that is out of service (I23a).
func (k *simMetroCheck) config(m *simMachine, w *simWorld, next *replication.Config) {
	prev, c := w.truth, k.c
	cause, own := next.History[len(next.History)-1].Cause, k.domains[m.domain].State
	refuse := func() {
		c.fail("I23a: %s of domain %s, which is %s, makes epoch %d: %s", m.name, m.domain, own, next.Epoch, cause)
	}
	switch {
	case cause == "domain deactivated":
		if prev.Phase != replication.PhaseDetached || !slices.ContainsFunc(prev.ISR, func(r replication.ReplicaID) bool {
			return !next.InISR(r) && k.state(prev.Members[r].Domain) == clusterdomain.Draining
		}) {
			c.fail("10.1: %s evicts replicas of volume %d, which is %s, and no domain of theirs drains", m.name, w.vol[0], prev.Phase)
		}
	case next.Phase == replication.PhaseDetached:
		if !own.MayDetach() {
			refuse()
		}
	case prev.Phase == replication.PhaseActive && next.Phase == replication.PhaseActive:
		if !own.MayRun() {
			refuse()
		}
	case !own.MayAttach():
		refuse()
	}
	if co := next.Coord; co != nil && prev.Coord != nil && co.AttachID == prev.Coord.AttachID && string(co.Domain) != m.domain {
		c.fail("I23a: %s speaks for the coordinator on %s", m.name, co.Node)
	}
	for _, r := range next.ISR {
		if d := next.Members[r].Domain; !prev.InISR(r) && k.state(d).MustStop() {
			c.seen["joined in a domain that had just been deactivated"]++
		}
	}
	if next.Phase == replication.PhaseRecovering {
		c.seen["takeover in the cluster"]++
	}
}

// changed asserts what is promised of the domains that one transaction has changed, which was asked for at a time before.
func (k *simMetroCheck) changed(m *simMachine, ds []clusterdomain.Domain, asked int64) {
	c := k.c
	before := k.domains
	k.domains = map[string]clusterdomain.Domain{}
	for n, d := range before {
		k.domains[n] = d
	}
	for _, d := range ds {
		k.domains[d.Name] = d
		k.made[simDomainEpoch{d.Name, d.Epoch}] = d
	}
	for _, d := range ds {
		old, known := before[d.Name]
		c.trace("domain %s: %s -> %s, epoch %d, by %s: %s", d.Name, old.State, d.State, d.Epoch, d.Actor, d.Reason)
		if !known {
			if d.State != clusterdomain.Active || d.Epoch != 1 {
				c.fail("10.1: domain %s appears %s at epoch %d", d.Name, d.State, d.Epoch)
			}
			continue
		}
		c.seen["domain "+string(old.State)+" -> "+string(d.State)+" by "+strings.TrimRight(strings.Fields(d.Actor)[0], "0123456789")]++
		if d.Epoch != old.Epoch+1 {
			c.fail("I1: domain %s goes from epoch %d to %d", d.Name, old.Epoch, d.Epoch)
		}
		if k.refused[d.Actor] {
			c.fail("10.1: the order of %s was refused, and makes domain %s %s", d.Actor, d.Name, d.State)
		}
		if len(d.AcceptDataLoss) > 0 && !k.givenUp[d.Actor] {
			c.fail("I24: %s gave up nothing, and domain %s is %s without %v", d.Actor, d.Name, d.State, d.AcceptDataLoss)
		}
		k.move(m, old, d, asked)
	}
	if len(ds) == 2 && before["b"].State != clusterdomain.Standby && before["a"].State != clusterdomain.Standby {
		c.fail("10.1: one transaction changes two domains")
	}
}

// move asserts that a change is one that its actor may make.
func (k *simMetroCheck) move(m *simMachine, old, d clusterdomain.Domain, asked int64) {
	c := k.c
	bad := func() {
		c.fail("10.1: %s makes domain %s, which is %s, %s", d.Actor, d.Name, old.State, d.State)
	}
	from := func(states ...clusterdomain.State) {
		if !slices.Contains(states, old.State) {
			bad()
		}
	}
	const active, standby, draining, inactive, fenced, rejoining = clusterdomain.Active, clusterdomain.Standby,
		clusterdomain.Draining, clusterdomain.Inactive, clusterdomain.Fenced, clusterdomain.Rejoining
	switch {
	case strings.HasPrefix(d.Actor, "op"):
		switch d.State {
		case active:
			from(standby, draining)
		case rejoining:
			from(inactive, fenced)
		case draining:
			from(active, standby, rejoining)
			k.gate(d, d.AcceptDataLoss)
		case fenced:
			from(active, standby, draining, inactive, rejoining)
			k.gate(d, d.AcceptDataLoss)
		default:
			bad()
		}
	case strings.HasPrefix(d.Actor, "arbiter"):
		if d.State == active {
			from(standby)
			if !c.policy.AutoPromote {
				bad()
			}
			return
		}
		from(active, draining)
		if d.State != fenced || d.Failover == nil {
			bad()
		}
		k.failover(m, d, asked)
	case d.State == inactive:
		from(draining)
		k.gate(d, old.AcceptDataLoss)
		for _, w := range c.vols {
			if co := w.truth.Coord; co != nil && string(co.Domain) == d.Name {
				c.fail("10.1: domain %s is INACTIVE, and volume %d is attached on %s", d.Name, w.vol[0], co.Node)
			}
		}
	default:
		from(rejoining)
		if d.State != active {
			bad()
		}
	}
}

// gate asserts that each volume whose last usable in-sync replica is in a domain that is taken out of service was given up by name (I23c).
func (k *simMetroCheck) gate(d clusterdomain.Domain, accepted []string) {
	for _, w := range k.c.vols {
		inside, outside := false, false
		for _, r := range w.truth.ISR {
			switch s := k.state(w.truth.Members[r].Domain); {
			case string(w.truth.Members[r].Domain) == d.Name:
				inside = true
			case s == clusterdomain.Active || s == clusterdomain.Standby || s == clusterdomain.Rejoining:
				outside = true
			}
		}
		switch given := slices.Contains(accepted, w.vol.String()); {
		case !inside || outside:
		case given:
			k.c.seen["last copy given up"]++
		default:
			k.c.fail("I23c: domain %s is %s, and has the last in-sync copy of volume %d, in sync %v", d.Name, d.State, w.vol[0], w.inSync())
		}
	}
}

// failover asserts what holds when an arbiter fences a domain (10.3).
func (k *simMetroCheck) failover(m *simMachine, d clusterdomain.Domain, asked int64) {
	c := k.c
	c.seen["automatic failover"]++
	k.step()
	if d.Failover.To != m.domain || m.domain == d.Name || k.domains[m.domain].State != clusterdomain.Active {
		c.fail("10.3: %s of domain %s, which is %s, fences %s for %s", m.name, m.domain, k.domains[m.domain].State, d.Name, d.Failover.To)
	}
	if by := time.Duration(c.now - k.last); k.last != 0 && by < c.policy.MinInterval-simMetroLate {
		c.fail("10.3: a failover %v after the last one", by)
	}
	k.last = c.now
	// What it had seen when it asked for this may be as old as its looks may be late.
	if by := k.healthy(m, asked-int64(simMetroLate+c.policy.Confirm), asked); by < c.policy.Confirm {
		c.fail("10.3: %s fences domain %s, and its kvdb was healthy for %v", m.name, d.Name, by)
	}
	all, gone := 0, 0
	for _, o := range c.machines {
		by := time.Duration(c.now - k.since[o.name])
		switch {
		case o.domain == d.Name:
			all++
			if !k.here[o.name] && by >= c.policy.Confirm-100*time.Millisecond {
				gone++
			}
		case o.domain == m.domain && o.name < m.name && k.here[o.name] && by > 10*time.Second && k.here[m.name]:
			c.fail("10.3: %s acts for domain %s, and %s is registered", m.name, m.domain, o.name)
		}
	}
	if gone == 0 || gone*100 < c.policy.QuorumLoss*all {
		c.fail("10.3: domain %s is fenced, %d of %d machines are gone", d.Name, gone, all)
	}
	for _, w := range c.vols {
		co := w.truth.Coord
		if co == nil || string(co.Domain) != d.Name {
			continue
		}
		c.mu.Lock()
		pair := [2]string{m.name, string(co.Node)}
		heard, again := c.heard[pair], c.again[pair]
		c.mu.Unlock()
		if by := time.Since(heard); !heard.IsZero() && by < c.silence() && again < asked-int64(simMetroLate) {
			c.fail("10.3: domain %s is fenced %v after %s heard the coordinator on %s", d.Name, by, m.name, co.Node)
		}
	}
	for _, o := range k.domains {
		if o.Name != d.Name && o.State == clusterdomain.Fenced && o.Failover != nil {
			c.fail("10.3: arbiters have fenced domains %s and %s", d.Name, o.Name)
		}
	}
}

// ordered takes what an operator was told of his order.
func (k *simMetroCheck) ordered(o clusterdomain.Change, d clusterdomain.Domain, err error) {
	c := k.c
	switch {
	case errors.Is(err, clusterdomain.ErrEpochChanged), errors.Is(err, clusterdomain.ErrLastCopy):
		c.seen["order refused: "+map[bool]string{true: "last copy", false: "epoch"}[errors.Is(err, clusterdomain.ErrLastCopy)]]++
		k.refused[o.Actor] = true
		for _, d := range k.made {
			if d.Actor == o.Actor {
				c.fail("10.1: the order of %s was refused (%v), and made domain %s %s", o.Actor, err, d.Name, d.State)
			}
		}
	case err != nil:
		c.seen["order without an end"]++
	default:
		c.seen["order carried out"]++
		switch made, ok := k.made[simDomainEpoch{d.Name, d.Epoch}]; {
		case !ok || made.Proposal != d.Proposal:
			c.fail("10.1: %s was told that domain %s is %s at epoch %d, it was %s", o.Actor, d.Name, d.State, d.Epoch, made.State)
		case o.ExpectedEpoch != nil && d.Epoch != *o.ExpectedEpoch && (d.Epoch != *o.ExpectedEpoch+1 || d.Actor != o.Actor):
			c.fail("10.1: the order of %s was for epoch %d of domain %s, and was carried out at epoch %d, by %s", o.Actor, *o.ExpectedEpoch, d.Name, d.Epoch, d.Actor)
		}
	}
}

package core

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/tandem-storage/tandem/replication"
)

// An operator who changes the protection now and then, and what may be acknowledged under what he was told.

// simPromise is what the operator was promised last, and what he has asked for since.
type simPromise struct {
	ids   uint64
	asked map[uint64]replication.Policy // without an answer
	lost  map[*Coordinator]bool         // have told that they go on without what is asked for
}

// drawPolicy draws one that the volume can meet.
func (w *simWorld) drawPolicy() replication.Policy {
	p := replication.Policy{Protection: replication.MaxAvailability}
	if w.rng.IntN(3) == 0 {
		p.Protection = replication.MaxProtection
	}
	p.InSync = w.rng.IntN(len(w.nodes) + 1)
	if w.rng.IntN(3) == 0 {
		p.Domains = []replication.DomainID{w.cfg.Members[w.nodes[w.rng.IntN(len(w.nodes))].rid].Domain}
	}
	if (p.Protection == replication.MaxProtection || p.InSync > 0 || p.Domains != nil) && w.rng.IntN(2) == 0 {
		p.StallMs = []int64{1, 200, 3000}[w.rng.IntN(3)]
	}
	return p
}

// changePolicy asks the coordinator for another policy.
func (w *simWorld) changePolicy() {
	n, p := w.client.at, w.drawPolicy()
	if n == nil || n.coord == nil || n.paused {
		return
	}
	expect := replication.Epoch(0)
	if w.rng.IntN(4) == 0 {
		expect = w.cfg.Epoch
	}
	w.ask(n, p, expect)
}

// ask asks n for a policy.
func (w *simWorld) ask(n *simNode, p replication.Policy, expect replication.Epoch) {
	if w.promised.asked == nil {
		w.promised.asked = map[uint64]replication.Policy{}
	}
	w.promised.ids++
	w.promised.asked[w.promised.ids] = p
	w.trace("operator asks %s for %+v", n.id, p)
	n.coord.SetPolicy(n.clock(), w.promised.ids, p, expect, "")
	n.drainCoord()
}

// policyTold takes what became of a request: the policy that was told to be in force is, or another one followed it.
func (w *simWorld) policyTold(n *simNode, e *Event) {
	p := w.promised.asked[e.ID]
	delete(w.promised.asked, e.ID)
	w.trace("%s: protection %+v: %v", n.id, p, e.Err)
	if e.Err != nil {
		w.seen["policy refused"]++
		return
	}
	w.seen["policy changed"]++
	if n.coord.mine(w.truth) && w.truth.Epoch == e.Epoch && !w.truth.Policy().Equal(p) {
		w.fail("the operator was told that %+v is in force in epoch %d, it is %+v", p, e.Epoch, w.truth.Policy())
	}
}

// unprotected notes that a coordinator goes on without what is asked for. That takes a bound, and its time.
func (w *simWorld) unprotected(n *simNode) {
	w.seen["unprotected"]++
	w.trace("%s goes on unprotected", n.id)
	if c := n.coord; c.cfg.Needs.StallMs == 0 {
		w.fail("%s goes on unprotected where writes are to wait for as long as it takes", n.id)
	}
	if w.promised.lost == nil {
		w.promised.lost = map[*Coordinator]bool{}
	}
	w.promised.lost[n.coord] = true
}

// checkPromise asserts that what is acknowledged is where the policy in force wants it to be, except after its time.
func (w *simWorld) checkPromise(n *simNode, o *simOp) {
	p, c := w.truth.Policy(), n.coord
	var in, all []replication.DomainID
	for _, m := range w.nodes {
		d := w.truth.Members[m.rid].Domain
		if all = append(all, d); w.truth.InISR(m.rid) {
			in = append(in, d)
		}
	}
	if p.Met(in, all) {
		return
	}
	switch {
	case p.StallMs == 0 || !c.policy.lapsed || !p.Equal(c.cfg.Policy()):
		w.fail("%v acknowledged with %v in sync, protection %+v", o.io.Kind, w.inSync(), p)
	case c.now-c.policy.unmet < p.StallMs*1e6:
		w.fail("%v acknowledged with %v in sync after %d ns, protection %+v", o.io.Kind, w.inSync(), c.now-c.policy.unmet, p)
	case !w.promised.lost[c]:
		w.fail("%v acknowledged with %v in sync, and no alarm", o.io.Kind, w.inSync())
	}
}

// policyCommand asks for the policy of a scenario's line: mode=..., min=N, domain=..., ms=N, epoch=N, each or none.
func (w *simWorld) policyCommand(t *testing.T, d *datadriven.TestData, args []string) {
	p, expect := replication.Policy{Protection: replication.MaxAvailability}, replication.Epoch(0)
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		var err error
		switch key {
		case "mode":
			p.Protection = replication.Protection(value)
		case "domain":
			p.Domains = append(p.Domains, replication.DomainID(value))
		case "min":
			_, err = fmt.Sscan(value, &p.InSync)
		case "ms":
			_, err = fmt.Sscan(value, &p.StallMs)
		case "epoch":
			_, err = fmt.Sscan(value, &expect)
		default:
			err = fmt.Errorf("unknown")
		}
		if err != nil {
			d.Fatalf(t, "%q: %v", a, err)
		}
	}
	w.ask(w.client.at, p, expect)
}

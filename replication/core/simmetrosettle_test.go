package core

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume"
)

// Within these times after the faults have ended, in simulated time:
const (
	simMetroOwn = 60 * time.Second  // everything goes on that does by itself
	simMetroAll = 200 * time.Second // everything is as it was, with an operator who activates and attaches
)

// settle ends what goes wrong and asserts that everything comes to rest (G5, 10.3): first what does without anybody, then, with an
// operator who activates the domains and attaches the volumes, all of it.
func (c *simMetro) settle() {
	c.trace("faults end")
	c.kvDown, c.kvSlow, c.unknown, c.attach = false, false, 0, 0
	c.heal(nil)
	c.goOn(nil)
	for _, m := range c.machines {
		m.silence(false)
		m.begin()
		for _, n := range m.nodes {
			n.unhang()
		}
	}
	c.connectAll()
	for _, w := range c.vols {
		w.moves.one = 0
		if n := w.client.at; w.client.quiet && n != nil && n.coord != nil {
			w.client.quiet = n.coord.detachReq
		}
	}
	due := ""
	for end := c.now + int64(simMetroOwn); c.now < end; {
		for range 20 {
			c.step()
		}
		if due = c.due(); due == "" {
			break
		}
	}
	if due != "" {
		c.fail("10.3: %v after the faults ended %s", simMetroOwn, due)
	}
	c.trace("operators mend")
	c.ending = true
	for end := c.now + int64(simMetroAll); c.now < end; {
		for range 20 {
			c.step()
		}
		if c.mend() {
			for _, w := range c.vols {
				w.compare()
				w.checkHealed()
				w.checkRest(w.client.at.coord)
			}
			return
		}
	}
	c.notSettled()
}

// due says what has still to go on by itself, "" if nothing has.
func (c *simMetro) due() string {
	v, nodes := c.facts()
	for _, vol := range v.Volumes {
		d, ok := c.check.domains[vol.Coordinator.Domain]
		if !ok || d.State != clusterdomain.Fenced || d.Failover == nil {
			continue
		}
		if node, _, cause := arbiter.Target(v, nodes, vol, d.Failover.To); cause == "" {
			return "volume " + vol.ID + " is still attached in domain " + d.Name + ", and can go on on " + node
		}
	}
	for _, d := range c.check.domains {
		if p := arbiter.Settle(v, d.Name, d.AcceptDataLoss); p.Next != d.State {
			return "domain " + d.Name + " is still " + string(d.State)
		}
	}
	for _, w := range c.vols {
		if n := w.client.at; n == nil || n.coord == nil || n.coord.stage != stageServing || !n.coord.mine(w.truth) {
			continue
		}
		in := func(out bool) bool {
			return slices.ContainsFunc(w.truth.ISR, func(r replication.ReplicaID) bool {
				return c.check.state(w.truth.Members[r].Domain).MustStop() == out
			})
		}
		if in(true) && in(false) {
			return "a replica in a domain that is out of service is still in sync: " + w.vol.String()
		}
	}
	return ""
}

// facts is what the arbiter would be told by who sees everything.
func (c *simMetro) facts() (arbiter.View, []arbiter.Node) {
	ctx := context.Background()
	configs, err := volume.NewConfigs(ctx, c.look, simCluster)
	if err != nil {
		c.fail("%v", err)
	}
	v := arbiter.View{Domains: map[string]arbiter.State{}}
	if v.Volumes, err = volume.NewDomainView(configs).Facts(ctx); err != nil {
		c.fail("%v", err)
	}
	for n, d := range c.check.domains {
		v.Domains[n] = d.State
	}
	var nodes []arbiter.Node
	for _, m := range c.machines {
		nodes = append(nodes, arbiter.Node{Name: m.name, Domain: m.domain, Online: c.check.here[m.name]})
	}
	for i := range v.Volumes {
		co := &v.Volumes[i].Coordinator
		co.Online = c.check.here[co.Node]
	}
	return v, nodes
}

// mend does what operators do in the end, and reports whether everything is at rest.
func (c *simMetro) mend() bool {
	rest := true
	for _, name := range c.domains {
		switch d := c.check.domains[name]; d.State {
		case clusterdomain.Active:
			continue
		case clusterdomain.Rejoining:
		default:
			if c.rng.IntN(20) == 0 {
				c.order(c.machines[0], name, activateIt, false)
			}
		}
		rest = false
	}
	for _, w := range c.vols {
		n := w.client.at
		if n == nil {
			rest = false
			if c.rng.IntN(20) == 0 {
				w.attachAt(w.nodes[c.rng.IntN(len(w.nodes))])
			}
			continue
		}
		if n.coord == nil || !w.atRest(n.coord) || !w.verified(n.coord) {
			rest = false
		}
	}
	return rest
}

func (c *simMetro) notSettled() {
	var s []string
	for _, name := range c.domains {
		s = append(s, name+" "+string(c.check.domains[name].State))
	}
	for _, w := range c.vols {
		if n := w.client.at; n == nil || n.coord == nil {
			c.fail("not settled: volume %d is not served; domains %s", w.vol[0], strings.Join(s, ", "))
		} else if k := n.coord; !w.atRest(k) {
			c.fail("not settled: volume %d on %s: stage %d stall %q isr %v flight %d change %+v join %+v evict %b %q; domains %s",
				w.vol[0], n.id, k.stage, k.Stall(), w.inSync(), len(k.flight.ios), k.change, k.join, k.evictReq, k.evictWhy, strings.Join(s, ", "))
		}
	}
	c.fail("not settled: domains %s", strings.Join(s, ", "))
}

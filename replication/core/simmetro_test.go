package core

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/memkv"
	"github.com/tandem-storage/tandem/replication"
)

// simMetro is two sites in a simulated world: machines in two cluster domains, volumes with a replica on each of them, and a kvdb. Each
// volume is a simWorld, and all of them share the machines, the links and the time. What decides is what production runs:
// the Manager of each machine with its arbiter, the transactions of the domains and of the configurations, over kvdb/memkv, and
// the state machines of this package. A machine knows of the domains what its own Manager has seen.
//
// The Managers run in goroutines of a bubble (testing/synctest), whose clock the world moves. What they ask of the kvdb waits at
// a gate (simmetrokv_test.go) until the world lets it happen, so that a seed has the same end each time.
type simMetro struct {
	fail  func(f string, a ...any) // does not return
	trace func(f string, a ...any)
	rng   *rand.Rand
	whim  *rand.Rand // of the event that happens
	start time.Time
	now   int64 // since start
	seen  map[string]int

	policy   clusterdomain.Failover
	ttl      time.Duration
	domains  []string
	machines []*simMachine
	vols     []*simWorld
	check    simMetroCheck

	kv      *memkv.Server
	look    *memkv.Store // of the one who looks on
	kvDown  bool
	kvSlow  bool
	unknown int // of 100 transactions, how many are not answered
	term    uint64
	ending  bool // consumers ask for nothing any more
	attach  int  // a volume without a coordinator is attached by somebody in one step of so many; 0: never
	waiting []*simAttach

	mu      sync.Mutex // over what other goroutines leave for the world
	asked   []*simRequest
	told    []simTold
	wanted  []*simAttach
	heard   map[[2]string]time.Time
	again   map[[2]string]int64 // when one was heard again that had been silent for long enough
	reached map[string]bool     // machines that reach the kvdb
}

// simTold is what a goroutine has found out, for the world to act on.
type simTold struct {
	key  string // orders what comes at once
	f    func()
	idle *simStore // not while this one waits for an answer: a Manager with several things to do picks one at random
}

// simAttach is an attachment that somebody waits for.
type simAttach struct {
	m      *simMachine
	n      *simNode
	coord  *Coordinator // nil: not begun
	answer chan error
	ctx    context.Context
}

const (
	simCluster   = "c"
	simPace      = 5 // times slower than a world of its own: what Managers do takes seconds
	simKVTimeout = 5 * time.Second
)

// newSimMetro makes the cluster of a seed, all of it in service.
func newSimMetro(seed uint64, fail, trace func(string, ...any)) *simMetro {
	rng := rand.New(rand.NewPCG(seed, 23))
	c := &simMetro{
		fail: fail, trace: trace, rng: rng, start: time.Now(), seen: map[string]int{}, domains: []string{"a", "b"}, kv: memkv.NewServer(memkv.Options{}),
		heard: map[[2]string]time.Time{}, again: map[[2]string]int64{}, reached: map[string]bool{}, attach: []int{0, 0, 500, 4000}[rng.IntN(4)],
		policy: clusterdomain.Failover{
			Enabled: true, Confirm: []time.Duration{2 * time.Second, 4 * time.Second}[rng.IntN(2)], MinInterval: []time.Duration{15 * time.Second, 45 * time.Second}[rng.IntN(2)],
			QuorumLoss: []int{100, 100, 50}[rng.IntN(3)], AutoPromote: rng.IntN(2) == 0,
		},
		ttl: kvdb.MinTTL,
	}
	c.look = c.kv.Open()
	c.check.init(c)
	for i := range simMachines(seed) {
		m := &simMachine{c: c, name: fmt.Sprint("n", i), domain: c.domains[i%2]}
		c.machines = append(c.machines, m)
	}
	for v := range 2 {
		c.addVolume(seed, v)
	}
	for _, m := range c.machines {
		m.run()
	}
	for range 100 { // registered, and known to each other
		c.tick(20 * time.Millisecond)
	}
	if rng.IntN(6) == 0 {
		c.standBy()
	}
	return c
}

func simMachines(seed uint64) int { return 2 + int(seed%2) }

// addVolume adds a volume that is detached, with a replica on each machine.
func (c *simMetro) addVolume(seed uint64, v int) {
	w := newSimWorld(len(c.machines), rand.New(rand.NewPCG(seed, 30+uint64(v))))
	w.fail = func(f string, a ...any) { c.fail(f+" (volume %d)", append(a, v)...) }
	w.trace = func(f string, a ...any) { c.trace("v%d "+f, append([]any{v}, a...)...) }
	w.seen, w.metro, w.vol = c.seen, c, replication.VolumeID{byte(v + 1)}
	w.cfg.Volume = w.vol
	for i, n := range w.nodes {
		m := c.machines[i]
		n.domain = replication.DomainID(m.domain)
		member := w.cfg.Members[n.rid]
		member.Domain = n.domain
		w.cfg.Members[n.rid] = member
	}
	w.drawMoves(rand.New(rand.NewPCG(seed, 40+uint64(v))))
	w.moves.one *= 10
	w.buggify()
	o := &w.opts
	for _, t := range []*int64{&o.SuspectTimeout, &o.OpTimeout, &o.SealTimeout, &o.LossyTimeout, &o.LeaseTime, &o.RetryInterval, &o.FlushInterval, &o.StallTimeout, &w.grant} {
		*t *= simPace
	}
	c.policy.Grant = max(c.policy.Grant, time.Duration(w.grant))
	w.setClocks()
	for i, n := range w.nodes {
		n.site = c.machines[i]
		n.site.nodes = append(n.site.nodes, n)
	}
	value, err := json.Marshal(w.cfg)
	if err != nil {
		c.fail("%v", err)
	}
	rev, err := kvdb.Put(context.Background(), c.look, simConfigKey(w.vol), value)
	if err != nil {
		c.fail("%v", err)
	}
	w.rev = uint64(rev)
	c.vols = append(c.vols, w)
}

// simConfigKey is the key of a volume's configuration (volume/keys.go).
func simConfigKey(v replication.VolumeID) string {
	return "/tandem/" + simCluster + "/vol/" + v.String() + "/cfg"
}

// standBy makes a domain one that only has replicas.
func (c *simMetro) standBy() {
	d := c.check.domains["b"]
	d.State, d.Epoch, d.Proposal = clusterdomain.Standby, d.Epoch+1, "standby"
	value, err := json.Marshal(d)
	if err != nil {
		c.fail("%v", err)
	}
	rev, err := kvdb.Put(context.Background(), c.look, clusterdomain.DomainKey(simCluster, "b"), value)
	if err != nil {
		c.fail("%v", err)
	}
	d.Mod = rev
	c.check.domains["b"], c.check.made[simDomainEpoch{"b", d.Epoch}] = d, d
	c.seen["a domain on standby"]++
}

// post leaves something for the world to do.
func (c *simMetro) post(key string, f func()) { c.leave(simTold{key, f, nil}) }

func (c *simMetro) leave(t simTold) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, t)
}

// step lets time pass, and everything that is due happen.
func (c *simMetro) step() {
	c.tick(time.Duration(1 + c.rng.Int64N(2e6*simPace)))
	for _, w := range c.vols {
		if !c.ending {
			w.client.act()
			w.stray()
			w.verifySome()
		}
		w.step()
		w.manageInMetro()
		w.move()
	}
	c.attachments()
	c.check.step()
}

// tick moves the clock, lets what waits at the gate pass, and tells the machines what they have found out.
func (c *simMetro) tick(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
	c.now = int64(time.Since(c.start))
	c.beat()
	c.serve()
	synctest.Wait()
	c.hear()
	for _, m := range c.machines {
		if v := m.manager.View(); m.up && !m.paused && v != m.view {
			m.see(v)
		}
	}
}

// hear takes what goroutines have found out.
func (c *simMetro) hear() {
	c.mu.Lock()
	told := c.told
	c.told = nil
	c.mu.Unlock()
	slices.SortStableFunc(told, func(a, b simTold) int { return strings.Compare(a.key, b.key) })
	for _, t := range told {
		if t.idle != nil && c.busy(t.idle) {
			c.leave(t)
			continue
		}
		t.f()
		synctest.Wait() // one after the other
	}
}

// busy reports whether a process waits for the kvdb.
func (c *simMetro) busy(s *simStore) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !s.dead && slices.ContainsFunc(c.asked, func(r *simRequest) bool { return r.of == s && !r.late })
}

// silence is for how long a coordinator has to be silent, but for a beat.
func (c *simMetro) silence() time.Duration {
	return c.policy.Grant + c.policy.Confirm - 100*time.Millisecond
}

// beat lets each machine hear the others that it can hear.
func (c *simMetro) beat() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.machines {
		for _, o := range c.machines {
			if m != o && m.hears(o) {
				pair := [2]string{m.name, o.name}
				if time.Since(c.heard[pair]) >= c.silence() {
					c.again[pair] = c.now
				}
				c.heard[pair] = time.Now()
			}
		}
	}
}

// assume attaches a volume after a failover, for a Manager, and waits until it is served.
func (m *simMachine) assume(ctx context.Context, id string) (uint64, error) {
	v, err := replication.ParseVolumeID(id)
	if err != nil {
		return 0, err
	}
	a := &simAttach{m: m, n: m.nodes[v[0]-1], answer: make(chan error, 1), ctx: ctx}
	m.c.mu.Lock()
	m.c.wanted = append(m.c.wanted, a)
	m.c.mu.Unlock()
	select {
	case err := <-a.answer:
		return 0, err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// attachments carries on what Managers wait for.
func (c *simMetro) attachments() {
	c.mu.Lock()
	wanted := c.wanted
	c.wanted = nil
	c.mu.Unlock()
	slices.SortStableFunc(wanted, func(a, b *simAttach) int {
		return strings.Compare(fmt.Sprint(a.m.name, a.n.w.vol), fmt.Sprint(b.m.name, b.n.w.vol))
	})
	c.waiting = slices.DeleteFunc(append(c.waiting, wanted...), func(a *simAttach) bool {
		n := a.n
		switch {
		case a.ctx.Err() != nil:
			return true
		case a.m.paused:
			return false
		case a.coord == nil && (n.coord != nil || n.stop || !n.up || !a.m.view.State(a.m.domain).MayAttach()):
			a.answer <- replication.ErrBusy
		case a.coord == nil:
			c.seen["attached after a failover"]++
			n.w.client.lost()
			n.w.client.at = n
			n.attach()
			a.coord = n.coord
			return false
		case n.coord != a.coord:
			a.answer <- replication.ErrDeposed
		case n.coord.stage == stageServing:
			c.seen["served after a failover"]++
			a.answer <- nil
		default:
			return false
		}
		return true
	})
}

// manageInMetro does what the operators of one volume do, and the process that goes on with its attachments.
func (w *simWorld) manageInMetro() {
	c := w.client
	switch {
	case c.at != nil && c.quiet && len(c.flight) == 0 && c.at.coord != nil:
		c.at.coord.Detach(c.at.clock())
		c.at.drainCoord()
	case c.at != nil:
	default:
		if k := slices.IndexFunc(w.nodes, (*simNode).resumable); k >= 0 && w.rng.IntN(100) == 0 {
			if n := w.nodes[k]; n.up && !n.paused && !n.stop && n.coord == nil && !n.kvCut && !n.mustStop(n) {
				c.at = n
				n.resume()
				return
			}
		}
		if w.metro.attach > 0 && w.rng.IntN(w.metro.attach) == 0 {
			w.attachAt(w.nodes[w.rng.IntN(len(w.nodes))])
		}
	}
}

// attachAt has somebody attach the volume on n, whoever has it.
func (w *simWorld) attachAt(n *simNode) bool {
	if !n.up || n.paused || n.stop || n.coord != nil || n.kvCut || !n.site.view.State(string(n.domain)).MayAttach() {
		return false
	}
	w.client.lost()
	w.client.at = n
	n.attach()
	return true
}

// close ends the cluster.
func (c *simMetro) close() {
	for _, m := range c.machines {
		m.kill()
	}
	for range 50 { // each answer may lead to another question
		synctest.Wait()
		c.serve()
		c.hear()
	}
	for _, m := range c.machines {
		m.ended.Wait()
	}
	_ = c.look.Close()
}

package core

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume"
)

// simMachine is a machine: a process with a Manager, and a replica of each volume.
type simMachine struct {
	c            *simMetro
	name, domain string
	nodes        []*simNode // by volume
	up, paused   bool
	kvCut        bool

	store   *simStore // of this life of the process
	ctx     context.Context
	end     context.CancelFunc
	ended   sync.WaitGroup
	manager *clusterdomain.Manager
	facts   *simFacts
	view    *clusterdomain.View // as its volumes were told
}

// run begins a life of the process.
func (m *simMachine) run() {
	c := m.c
	m.up, m.paused, m.view = true, false, &clusterdomain.View{}
	m.store = &simStore{m: m, kv: c.kv.Open()}
	m.store.kv.SetReachable(m.reaches())
	m.ctx, m.end = context.WithCancel(context.Background())
	f, name := c.policy, m.name
	f.LastHeard = func(node string) time.Time {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.heard[[2]string{name, node}]
	}
	f.Term = func(context.Context) (uint64, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.reached[name] {
			return 0, kvdb.ErrUnavailable
		}
		return c.term, nil
	}
	f.Attach = func(ctx context.Context, id, _ string) (uint64, error) { return m.assume(ctx, id) }
	m.facts = &simFacts{store: m.store}
	var err error
	m.manager, err = clusterdomain.New(m.store, clusterdomain.Options{
		Cluster: simCluster, Node: clusterdomain.Node{Name: m.name, Domain: m.domain, Address: m.name + ":1"}, Volumes: m.facts, TTL: c.ttl, Failover: f,
	})
	if err != nil {
		c.fail("%v", err)
	}
	manager, ctx := m.manager, m.ctx
	m.ended.Go(func() {
		if err := manager.Run(ctx); err != nil {
			c.post("run "+name, func() { c.fail("%s: %v", name, err) })
		}
	})
}

// reaches reports whether the process reaches the kvdb.
func (m *simMachine) reaches() bool { return m.up && !m.paused && !m.kvCut && !m.c.kvDown }

// crash kills the process; with power, the machine.
func (m *simMachine) crash(power bool) {
	m.kill()
	for _, n := range m.nodes {
		if n.up {
			n.crash(power)
		}
	}
}

// kill ends the part of the process that is not of a volume.
func (m *simMachine) kill() {
	if m.store == nil || !m.up {
		return
	}
	m.up, m.paused = false, false
	m.store.die()
	m.end()
}

// begin starts the machine, if its process has ended.
func (m *simMachine) begin() {
	if m.up {
		return
	}
	m.run()
	for _, n := range m.nodes {
		n.start()
	}
	m.connect()
}

// connect makes what is told of the machine's way to the kvdb true of its parts.
func (m *simMachine) connect() {
	c, on := m.c, m.reaches()
	if m.up {
		m.store.kv.SetReachable(on)
	}
	c.mu.Lock()
	c.reached[m.name] = on
	c.mu.Unlock()
	for _, n := range m.nodes {
		was := n.kvCut
		n.kvCut, n.paused = m.kvCut || c.kvDown, m.up && m.paused
		if was && !n.kvCut {
			n.watch()
		}
	}
}

func (c *simMetro) connectAll() {
	for _, m := range c.machines {
		m.connect()
	}
}

// simFacts shows the volumes to a Manager as production does, once there is an incarnation of the kvdb.
type simFacts struct {
	store *simStore
	c     atomic.Pointer[volume.Configs]
}

func (f *simFacts) configs(ctx context.Context) (*volume.Configs, error) {
	if c := f.c.Load(); c != nil {
		return c, nil
	}
	c, err := volume.NewConfigs(ctx, f.store, simCluster)
	if err == nil {
		f.c.Store(c)
	}
	return c, err
}

func (f *simFacts) Facts(ctx context.Context) ([]arbiter.Volume, error) {
	c, err := f.configs(ctx)
	if err != nil {
		return nil, err
	}
	return volume.NewDomainView(c).Facts(ctx)
}

func (f *simFacts) EvictDetached(ctx context.Context, id, domain string) error {
	c, err := f.configs(ctx)
	if err != nil {
		return err
	}
	return volume.NewDomainView(c).EvictDetached(ctx, id, domain)
}

func (f *simFacts) Receipt(ctx context.Context, id string, failover uint64) (*clusterdomain.Receipt, error) {
	c, err := f.configs(ctx)
	if err != nil {
		return nil, err
	}
	return volume.NewDomainView(c).Receipt(ctx, id, failover)
}

// hears reports whether m's beats are answered by o.
func (m *simMachine) hears(o *simMachine) bool {
	a, b := m.nodes[0], o.nodes[0]
	return m.up && o.up && !m.paused && !o.paused && !b.silent && a.reach(b) && b.reach(a)
}

// see tells the machine's volumes what its Manager has seen, as replication/volume does.
func (m *simMachine) see(v *clusterdomain.View) {
	m.view = v
	for _, n := range m.nodes {
		for _, id := range slices.Sorted(maps.Keys(n.conns)) {
			if conn := n.conns[id]; n.mustStop(conn.coord) {
				conn.breakOff()
			}
		}
		if n.mustStop(n) {
			if n.out != nil { // its consumer gets errors
				n.record = replication.AttachID{}
				n.end()
			}
			if n.coord != nil {
				n.coord.Kill(n.clock(), replication.ErrDomainFenced)
				n.drainCoord()
			}
			continue
		}
		for i, o := range n.w.nodes {
			if n.coord != nil {
				n.coord.SetUsable(n.clock(), i, !n.mustStop(o))
				n.drainCoord()
			}
			if n.coord != nil {
				n.coord.SetKept(n.clock(), i, !n.sendsAway(o))
				n.drainCoord()
			}
		}
	}
}

// mustStop reports whether n takes the cluster domain of m to be out of service.
func (n *simNode) mustStop(m *simNode) bool {
	if n.site == nil {
		return m.fenced
	}
	return n.site.view.State(string(m.domain)).MustStop()
}

// sendsAway reports whether n, as a coordinator, takes the cluster domain of m to be deactivated by plan.
func (n *simNode) sendsAway(m *simNode) bool {
	if n.site == nil {
		return m.drains && m != n
	}
	v := n.site.view
	return v.State(string(m.domain)) == clusterdomain.Draining && v.State(string(n.domain)).MayAttach()
}

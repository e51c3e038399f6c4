package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/memkv"
	"github.com/tandem-storage/tandem/replication"
)

const gib = int64(1) << 30

// filter is a kvdb.Store in front of another in which things go wrong.
type filter struct {
	kvdb.Store
	ops atomic.Int64 // calls so far

	cutAt   int64 // from this call on nothing gets through; 0: never
	cutLate bool  // the call cutAt itself is carried out, but its answer is lost

	mu        sync.Mutex
	lose      func() (before, after bool) // for each Txn that writes: the request, or the answer, is lost
	beforeTxn func(t kvdb.Txn)            // for each Txn that writes
}

func (f *filter) pass() (run, answer bool) {
	n := f.ops.Add(1)
	switch {
	case f.cutAt == 0 || n < f.cutAt:
		return true, true
	case n == f.cutAt:
		return f.cutLate, false
	default:
		return false, false
	}
}

func (f *filter) Get(ctx context.Context, key string) (kvdb.KV, error) {
	if _, ok := f.pass(); !ok {
		return kvdb.KV{}, kvdb.ErrUnavailable
	}
	return f.Store.Get(ctx, key)
}

func (f *filter) List(ctx context.Context, prefix string) ([]kvdb.KV, kvdb.Revision, error) {
	if _, ok := f.pass(); !ok {
		return nil, 0, kvdb.ErrUnavailable
	}
	return f.Store.List(ctx, prefix)
}

func (f *filter) Txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	run, answer := f.pass()
	if !t.ReadOnly() {
		f.mu.Lock()
		before, after := false, false
		if f.lose != nil {
			before, after = f.lose()
		}
		hook := f.beforeTxn
		f.mu.Unlock()
		run, answer = run && !before, answer && !before && !after
		if hook != nil {
			hook(t)
		}
	}
	if !run {
		return kvdb.TxnResult{}, kvdb.ErrUnavailable
	}
	res, err := f.Store.Txn(ctx, t)
	if !answer {
		return kvdb.TxnResult{}, kvdb.ErrUnavailable
	}
	return res, err
}

// disks are the replicas on one node, which outlive its processes.
type disks struct {
	mu      sync.Mutex
	m       map[LocalReplica]int64
	notes   map[LocalReplica][]byte
	makeErr error
	snaps   map[heldSnapshot]bool
	from    map[LocalReplica]*Source
	hold    chan struct{}         // Make waits for it, if not nil
	thick   map[LocalReplica]bool // as it was asked for
}

func newDisks() *disks {
	return &disks{m: map[LocalReplica]int64{}, notes: map[LocalReplica][]byte{}, snaps: map[heldSnapshot]bool{}, from: map[LocalReplica]*Source{}, thick: map[LocalReplica]bool{}}
}

// heldSnapshot is a snapshot of a replica.
type heldSnapshot struct {
	LocalReplica
	id replication.SnapshotID
}

func (d *disks) Make(ctx context.Context, s ReplicaSpec) error {
	d.mu.Lock()
	hold, err := d.hold, d.makeErr
	d.m[LocalReplica{s.Volume, s.Replica, s.Pool}] = s.Size // begun, whatever comes
	d.from[LocalReplica{s.Volume, s.Replica, s.Pool}] = s.From
	d.thick[LocalReplica{s.Volume, s.Replica, s.Pool}] = s.Thick
	d.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (d *disks) DeleteSnapshot(_ context.Context, r LocalReplica, id replication.SnapshotID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.snaps, heldSnapshot{r, id})
	return nil
}

func (d *disks) Note(l LocalReplica, spec []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notes[l] = spec
	return nil
}

func (d *disks) Remove(_ context.Context, v replication.VolumeID, r replication.ReplicaID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range d.m {
		if k.Volume == v && k.Replica == r {
			delete(d.m, k)
		}
	}
	return nil
}

func (d *disks) List(context.Context) ([]LocalReplica, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var l []LocalReplica
	for k := range d.m {
		l = append(l, k)
	}
	return l, nil
}

// fixedView is as old as the test lets it be: refresh, if not nil, brings it up to date.
type fixedView struct {
	v       *clusterdomain.View
	refresh func()
}

func (f fixedView) View() *clusterdomain.View { return f.v }

func (f fixedView) Refresh(context.Context) error {
	if f.refresh != nil {
		f.refresh()
	}
	return nil
}

// world is a cluster of one node in each domain: n-a in a, n-b in b, ...
type world struct {
	t       *testing.T
	server  *memkv.Server
	store   kvdb.Store // that nothing goes wrong in
	view    *clusterdomain.View
	disks   map[string]*disks
	domains []string
	follows bool             // Refresh reads the domains anew
	process replication.UUID // that runs on each node
}

func newWorld(t *testing.T, domains ...string) *world {
	t.Helper()
	w := &world{t: t, server: memkv.NewServer(memkv.Options{}), disks: map[string]*disks{}, domains: domains, process: replication.NewUUID()}
	w.store = w.server.Open()
	t.Cleanup(func() { w.store.Close() })
	if _, err := clusterdomain.Incarnation(t.Context(), w.store, "c", "test"); err != nil {
		t.Fatal(err)
	}
	w.view = &clusterdomain.View{Local: "n-" + domains[0]}
	for _, d := range domains {
		w.disks["n-"+d] = newDisks()
		w.view.Nodes = append(w.view.Nodes, clusterdomain.Node{
			Name: "n-" + d, Domain: d, Online: true, Address: d + ":1",
			Pools: []clusterdomain.Pool{{UUID: "pool-" + d, Path: "/p", Total: 100 * gib}},
		})
		w.setDomain(d, clusterdomain.Active)
	}
	w.readDomains()
	return w
}

// refresh is what a node does that asks for a view not older than now, if the
// test wants one that follows.
func (w *world) refresh() {
	if w.follows {
		w.readDomains()
	}
}

func (w *world) readDomains() {
	kvs, _, err := w.store.List(w.t.Context(), "/tandem/c/dom/")
	if err != nil {
		w.t.Fatal(err)
	}
	w.view.Domains = nil
	for _, kv := range kvs {
		d, err := clusterdomain.ParseDomain(kv)
		if err != nil {
			w.t.Fatal(err)
		}
		w.view.Domains = append(w.view.Domains, d)
	}
}

func (w *world) setDomain(d string, s clusterdomain.State) {
	v := fmt.Sprintf(`{"name":%q,"state":%q,"dom_epoch":1}`, d, s)
	if _, err := kvdb.Put(context.Background(), w.store, clusterdomain.DomainKey("c", d), []byte(v)); err != nil {
		w.t.Error(err)
	}
}

// configs on a store of the test's choice.
func (w *world) configs(s kvdb.Store) *Configs {
	c, err := NewConfigs(w.t.Context(), w.store, "c")
	if err != nil {
		w.t.Fatal(err)
	}
	c.store = s
	return c
}

func (w *world) catalogue(s kvdb.Store) *Catalogue {
	c := NewCatalogue(w.configs(s), fixedView{w.view, w.refresh})
	c.process = w.process
	return c
}

// restart has all that is made from now on be of other processes.
func (w *world) restart() { w.process = replication.NewUUID() }

func (w *world) reconciler(s kvdb.Store, node string) *Reconciler {
	return NewReconciler(w.catalogue(s), ReconcilerOptions{Node: replication.NodeID(node), Replicas: w.disks[node]})
}

// settle reconciles on the nodes, one after the other, until nothing changes.
func (w *world) settle(nodes ...string) {
	w.t.Helper()
	var rs []*Reconciler
	for _, n := range nodes {
		rs = append(rs, w.reconciler(w.store, n))
	}
	for last := kvdb.Revision(-1); ; {
		for _, r := range rs {
			if err := r.Reconcile(w.t.Context()); err != nil {
				w.t.Fatal(err)
			}
		}
		_, rev, err := w.store.List(w.t.Context(), "/tandem/c/vol")
		if err != nil {
			w.t.Fatal(err)
		}
		if rev == last {
			return
		}
		last = rev
	}
}

// checkWhole fails unless every volume is READY with all its replicas, no disk
// has anything else, and no record is left over. It returns the volumes.
func (w *world) checkWhole() []*Entry {
	w.t.Helper()
	es, err := w.catalogue(w.store).List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	replicas, keys := 0, 0
	for _, e := range es {
		if e.State != Ready || e.Config == nil {
			w.t.Errorf("volume %s is %s, config %v", e.Name, e.State, e.Config)
			continue
		}
		keys += 3
		if e.Config.Epoch == 1 && (len(e.Config.ISR) != len(e.Placed) || e.Config.Phase != replication.PhaseDetached || e.Config.Size != e.Size) {
			w.t.Errorf("volume %s has configuration %+v", e.Name, e.Config)
		}
		for _, p := range e.Placed {
			replicas++
			if size := w.disks[string(p.Node)].m[LocalReplica{e.ID, p.Replica, p.Pool}]; size != e.Size {
				w.t.Errorf("volume %s: replica on %s has size %d", e.Name, p.Node, size)
			}
			if m := e.Config.Members[p.Replica]; m.Node != p.Node || m.Domain != p.Domain || m.Pool != p.Pool {
				w.t.Errorf("volume %s: member %+v, placed %+v", e.Name, m, p)
			}
		}
	}
	for _, d := range w.disks {
		replicas -= len(d.m)
	}
	if replicas != 0 {
		w.t.Errorf("%d more replicas claimed than there are on disks", replicas)
	}
	kvs, _, err := w.store.List(w.t.Context(), "/tandem/c/vol")
	if err != nil {
		w.t.Fatal(err)
	}
	if len(kvs) != keys {
		for _, kv := range kvs {
			w.t.Logf("%s = %.80s", kv.Key, kv.Value)
		}
		w.t.Errorf("%d keys, want %d", len(kvs), keys)
	}
	return es
}

// create makes a volume with all nodes at work.
func (w *world) create(r Request) *Entry {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for _, d := range w.domains {
		wg.Go(func() { w.reconciler(w.store, "n-"+d).Run(ctx) })
	}
	e, err := w.catalogue(w.store).Create(ctx, r)
	cancel()
	wg.Wait()
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// seeded returns a random source whose seed is printed if the test fails.
func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// member is the replica of the domain.
func member(cfg *replication.Config, d replication.DomainID) replication.ReplicaID {
	i := slices.IndexFunc(cfg.ISR, func(r replication.ReplicaID) bool { return cfg.Members[r].Domain == d })
	if i < 0 {
		for r, m := range cfg.Members {
			if m.Domain == d {
				return r
			}
		}
	}
	return cfg.ISR[i]
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// putConfig writes a configuration past all rules.
func (w *world) putConfig(cfg *replication.Config) {
	op, err := put(newKeys("c").config(cfg.Volume), cfg)
	if err == nil {
		_, err = kvdb.Put(context.Background(), w.store, op.Key, op.Value)
	}
	if err != nil {
		w.t.Error(err)
	}
}

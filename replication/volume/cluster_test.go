package volume

import (
	"context"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/transport/transporttest"
)

// testCluster is a few nodes in this process: real managers, memory for disks,
// kvdb and network.
type testCluster struct {
	t      *testing.T
	net    *transporttest.Net
	kv     *testConfigs
	nodes  []*testNode
	vol    replication.VolumeID
	down   sync.Map // replication.DomainID -> bool: not usable
	drains sync.Map // replication.DomainID -> bool: not to be kept

	sessions atomic.Int64 // opened between nodes so far
	open     atomic.Int64 // being opened, or open
}

type testNode struct {
	c    *testCluster
	id   replication.NodeID
	dom  replication.DomainID
	rep  replication.ReplicaID
	boot replication.BootID
	st   *testStorage
	m    *Manager
}

// testConfigs is the kvdb: one configuration, compared and set.
type testConfigs struct {
	mu     sync.Mutex
	cfg    *replication.Config
	rev    uint64
	down   error // answer to everything, if not nil
	noSwap error // answer to every change, if not nil
	gone   bool  // the volume is not there any more
	loads  int   // so far
}

func (k *testConfigs) Load(context.Context, replication.VolumeID) (*replication.Config, uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.loads++
	if k.down != nil {
		return nil, 0, k.down
	}
	if k.gone {
		return nil, 0, replication.ErrVolumeNotFound
	}
	return k.cfg.Clone(), k.rev, nil
}

func (k *testConfigs) Swap(_ context.Context, _ *replication.Config, rev uint64, next *replication.Config, _ replication.DomainID) (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.down != nil:
		return 0, fmt.Errorf("%w: %w", ErrNotSent, k.down)
	case k.noSwap != nil:
		return 0, k.noSwap
	case k.gone || rev != k.rev:
		return 0, ErrConflict
	}
	k.cfg, k.rev = next.Clone(), k.rev+1
	return k.rev, nil
}

func (k *testConfigs) loaded() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.loads
}

func (k *testConfigs) config() *replication.Config {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cfg.Clone()
}

// testStorage is a replica in memory whose content outlives its Manager.
type testStorage struct {
	block.Device
	mem    *blocktest.Mem
	mu     sync.Mutex
	stored Stored
	fail   error // of Persist
	size   int64 // of the replica, bytes
	noSums error
	noCut  error // answer to every snapshot, if not nil
	snaps  map[replication.SnapshotID][]byte

	crowded atomic.Bool
	looks   atomic.Int64 // calls of Crowded
}

// roomToGrow is how much larger a replica in memory can become, bytes.
const roomToGrow = 16 << 20

func newTestStorage(size int64) *testStorage {
	mem := blocktest.NewMem(blocktest.MemOptions{Size: size + roomToGrow, Async: true})
	return &testStorage{Device: mem, mem: mem, size: size, stored: Stored{
		Meta:  core.ReplicaMeta{Epoch: 1, Gen: 1, State: replication.MemberInSync, Clean: true},
		Dirty: make(map[replication.ReplicaID]*core.Bitmap),
	}}
}

// Info implements block.Device.
func (s *testStorage) Info() block.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.infoLocked()
}

func (s *testStorage) infoLocked() block.Info {
	info := s.mem.Info()
	info.Size = s.size
	return info
}

func (s *testStorage) Stored() (Stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored, nil
}

func (s *testStorage) Crowded() (bool, error) {
	defer s.looks.Add(1)
	return s.crowded.Load(), nil
}

func (s *testStorage) Persist(p core.Persist) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if p.Size > s.mem.Info().Size {
		return fmt.Errorf("%w: %d bytes", block.ErrNoSpace, p.Size)
	}
	if p.Size != 0 {
		s.size = p.Size
	}
	s.keepLocked(p.Maps)
	if p.Meta != nil {
		s.stored.Meta = *p.Meta
		maps.DeleteFunc(s.stored.Dirty, func(q replication.ReplicaID, _ *core.Bitmap) bool { return !slices.Contains(p.Meta.Missing, q) })
	}
	return nil
}

// keepLocked adds to the dirty maps. They are of one process at a time.
func (s *testStorage) keepLocked(parts []core.MapPart) {
	dirty := maps.Clone(s.stored.Dirty)
	for _, p := range parts {
		m := core.NewBitmap(int((s.infoLocked().Size + replication.ResyncBlock - 1) / replication.ResyncBlock))
		if dirty[p.Peer] != nil {
			m.OrBytes(dirty[p.Peer].Bytes())
		}
		for b := p.Bits; b != 0; b &= b - 1 {
			m.Set(int(p.Region)*replication.RegionSize/replication.ResyncBlock + bits.TrailingZeros64(b))
		}
		dirty[p.Peer] = m
	}
	s.stored.Dirty = dirty
}

// ChangeLog stores everything at once.
func (s *testStorage) ChangeLog(c core.LogChange, done func(error)) {
	s.mu.Lock()
	s.stored.Active = slices.DeleteFunc(append(slices.Clone(s.stored.Active), c.Activate...), func(g uint32) bool { return slices.Contains(c.Retire, g) && !slices.Contains(c.Activate, g) })
	s.stored.LogLost = c.Lost
	s.mu.Unlock()
	if done != nil {
		go done(nil)
	}
}

func (s *testStorage) CloseClean(rest core.Rest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keepLocked(rest.Maps)
	s.stored.Active = slices.DeleteFunc(slices.Clone(s.stored.Active), func(g uint32) bool { return slices.Contains(rest.Retire, g) })
	return nil
}

// CutSnapshot implements Storage. Nothing may be in flight: the memory is as it was before when it has been read.
func (s *testStorage) CutSnapshot(id replication.SnapshotID, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noCut != nil {
		return s.noCut
	}
	p := make([]byte, size)
	if err := block.ReadAt(s, p, 0); err != nil {
		return err
	}
	if s.snaps == nil {
		s.snaps = map[replication.SnapshotID][]byte{}
	}
	s.snaps[id] = p
	return nil
}

// ChecksumsOff implements Storage.
func (s *testStorage) ChecksumsOff() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.noSums
}

// Pool implements Storage.
func (*testStorage) Pool() string { return "memory" }

// Close leaves the memory to the next life.
func (s *testStorage) Close() error { return nil }

type testPeers struct {
	c    *testCluster
	from replication.NodeID
}

func (p testPeers) Peer(n replication.NodeID) (transport.Peer, error) {
	return countingPeer{p.c.net.Peer(p.from, n), p.c}, nil
}

type countingPeer struct {
	transport.Peer
	c *testCluster
}

func (p countingPeer) Session(ctx context.Context) (transport.Conn, error) {
	p.c.sessions.Add(1)
	p.c.open.Add(1)
	conn, err := p.Peer.Session(ctx)
	if err != nil {
		p.c.open.Add(-1)
		return nil, err
	}
	return &countingConn{Conn: conn, c: p.c}, nil
}

type countingConn struct {
	transport.Conn
	c    *testCluster
	once sync.Once
}

func (n *countingConn) Close() error {
	n.once.Do(func() { n.c.open.Add(-1) })
	return n.Conn.Close()
}

var testTiming = Timing{
	Suspect: 300 * time.Millisecond, Operation: 2 * time.Second, Seal: 500 * time.Millisecond,
	Lease: 200 * time.Millisecond, LeaseRest: 300 * time.Millisecond, LeaseGrant: 300 * time.Millisecond, Lossy: time.Second, Stall: 20 * time.Second, Retry: 20 * time.Millisecond, Flush: 50 * time.Millisecond,
}

// newTestCluster starts nodes a and b in domains of the same names, each with a
// replica of one volume.
func newTestCluster(t *testing.T, size int64) *testCluster {
	t.Helper()
	c := &testCluster{t: t, net: transporttest.NewNet(), vol: replication.VolumeID(replication.NewUUID())}
	cfg := &replication.Config{
		Version: 1, Volume: c.vol, Epoch: 1, Gen: 1, Phase: replication.PhaseDetached, Size: size,
		Members: map[replication.ReplicaID]replication.Member{}, Protection: replication.MaxAvailability,
		History: []replication.EpochRecord{{Epoch: 1, Gen: 1}},
	}
	for i := range 2 {
		name := fmt.Sprintf("%c", 'a'+i)
		n := &testNode{
			c: c, id: replication.NodeID(name), dom: replication.DomainID(name), rep: replication.ReplicaID(replication.NewUUID()),
			boot: replication.BootID(replication.NewUUID()), st: newTestStorage(size),
		}
		c.nodes = append(c.nodes, n)
		cfg.ISR = append(cfg.ISR, n.rep)
		cfg.Members[n.rep] = replication.Member{Node: n.id, Domain: n.dom, State: replication.MemberInSync}
	}
	c.kv = &testConfigs{cfg: cfg, rev: 1}
	for _, n := range c.nodes {
		n.start()
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, n := range c.nodes {
			if err := n.m.Close(ctx); err != nil {
				t.Logf("close %s: %v", n.id, err)
			}
		}
		c.net.Close()
	})
	return c
}

func (c *testCluster) kept(d replication.DomainID) bool {
	_, drains := c.drains.Load(d)
	return !drains
}

// drain has a domain deactivated by plan, or not, as every node sees it.
func (c *testCluster) drain(d replication.DomainID, drains bool) {
	if drains {
		c.drains.Store(d, true)
	} else {
		c.drains.Delete(d)
	}
	for _, n := range c.nodes {
		n.m.DomainsChanged()
	}
}

func (c *testCluster) usable(d replication.DomainID) bool {
	_, down := c.down.Load(d)
	return !down
}

// start begins a life of the node's process.
func (n *testNode) start() {
	c := n.c
	n.m = NewManager(Options{
		Node: n.id, Domain: n.dom, Boot: n.boot, Instance: replication.NewUUID(), Configs: c.kv, Peers: testPeers{c, n.id},
		Usable: c.usable, MayKeep: c.kept, MayAttach: c.usable, Timing: testTiming, Logger: zaptest.NewLogger(c.t).Named(string(n.id)),
	})
	c.net.Join(transport.Identity{Cluster: "test", Domain: n.dom, Node: n.id}, n.m)
	if err := n.m.AddReplica(c.vol, n.rep, n.st); err != nil {
		c.t.Fatalf("add replica on %s: %v", n.id, err)
	}
}

func (n *testNode) attach() *Volume {
	n.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	v, err := n.m.Attach(ctx, n.c.vol, AttachOptions{TakeFrom: n.c.kv.config().Coord})
	if err != nil {
		n.c.t.Fatalf("attach on %s: %v", n.id, err)
	}
	return v
}

// fence makes a domain unusable, as every node sees it.
func (c *testCluster) fence(d replication.DomainID, fenced bool) {
	if fenced {
		c.down.Store(d, true)
	} else {
		c.down.Delete(d)
	}
	for _, n := range c.nodes {
		n.m.DomainsChanged()
	}
}

// eventually polls what has no event to wait for.
func (c *testCluster) eventually(what string, cond func() bool) {
	c.t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			c.t.Fatalf("%s: not within 20 s; configuration: %+v", what, c.kv.config())
		}
	}
}

func (c *testCluster) awaitInSync(n int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%d replicas in sync", n), func() bool { return len(c.kv.config().ISR) == n })
}

// compare asserts that all in-sync replicas are identical.
func (c *testCluster) compare() {
	c.t.Helper()
	cfg := c.kv.config()
	var first *testNode
	a, b := make([]byte, block.MaxIO), make([]byte, block.MaxIO)
	for _, n := range c.nodes {
		if !cfg.InISR(n.rep) {
			continue
		}
		if first == nil {
			first = n
			continue
		}
		for off := int64(0); off < cfg.Size; off += block.MaxIO {
			if err := block.ReadAt(first.st.mem, a, off); err != nil {
				c.t.Fatal(err)
			}
			if err := block.ReadAt(n.st.mem, b, off); err != nil {
				c.t.Fatal(err)
			}
			if string(a) != string(b) {
				c.t.Fatalf("replicas on %s and %s differ in the MiB at %d", first.id, n.id, off)
			}
		}
	}
}

package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/transport"
)

// Peers finds other nodes.
type Peers interface {
	Peer(n replication.NodeID) (transport.Peer, error)
}

// Timing of the protocol; zero values mean the defaults.
type Timing struct {
	Suspect     time.Duration // a replica out of reach for so long is evicted; default 3 s
	Operation   time.Duration // a replica that does not answer for so long is evicted; default 10 s
	EvictSlow   time.Duration // one of whose writes more than one in a hundred take longer, for SlowFor, is evicted; 0: none is
	SlowFor     time.Duration // in each sixth of it; default 30 s
	SlowRest    time.Duration // one that was evicted for that is not resynced before, and twice as long each time, up to 64 times; default 60 s
	Seal        time.Duration // how long a takeover waits for further replicas; default 5 s
	Lease       time.Duration // how long a read lease lets a coordinator read; default 2 s
	LeaseRest   time.Duration // leases are not renewed when the consumer has asked for nothing for so long; default 5 s
	LeaseGrant  time.Duration // how long a replica keeps one, before which it follows no other coordinator; default 3 s
	Lossy       time.Duration // the same while all that answered lost power; default 60 s
	Handover    time.Duration // a volume that is handed over and not served by then is taken back; default 10 s
	Stall       time.Duration // a request that cannot proceed for so long fails; default 90 s
	Retry       time.Duration // between attempts; default 500 ms
	Flush       time.Duration // background flush; default 1 s
	Group       time.Duration // nothing waits longer than that for the other volumes of a group; default 5 s
	GroupRest   time.Duration // a replica that left for the sake of a group alone is not resynced before; default 60 s
	Rest        time.Duration // Close waits for so long that a disk answers what it was asked; default 10 s
	ResyncRate  int64         // bytes a second that all volumes attached here copy together; 0 unlimited
	Resyncs     int           // of them resynced at once; default 4
	ResyncFloor int64         // what copies do in bytes a second however slow they make the consumer's requests; default 16 MiB

	PoolResyncs    int   // resyncs at once that read or write a pool of this node; default 4
	PoolResyncRate int64 // bytes a second that they read and write together; 0 unlimited
	LinkResyncRate int64 // bytes a second that all resyncs from one other domain bring to replicas on this node; 0 unlimited

	// ConfirmReads has each read confirmed by every in-sync replica instead of leases, which trust clocks. Each node decides for itself.
	ConfirmReads bool
}

func (t *Timing) ensureDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Suspect, 3*time.Second)
	def(&t.Operation, 10*time.Second)
	def(&t.SlowFor, 30*time.Second)
	def(&t.SlowRest, 60*time.Second)
	def(&t.Seal, 5*time.Second)
	def(&t.Lease, 2*time.Second)
	def(&t.LeaseRest, 5*time.Second)
	def(&t.LeaseGrant, 3*time.Second)
	def(&t.Lossy, 60*time.Second)
	def(&t.Handover, 10*time.Second)
	def(&t.Stall, 90*time.Second)
	def(&t.Retry, 500*time.Millisecond)
	def(&t.Flush, time.Second)
	def(&t.Group, 5*time.Second)
	def(&t.GroupRest, 60*time.Second)
	def(&t.Rest, 10*time.Second)
	if t.Resyncs == 0 {
		t.Resyncs = 4
	}
	if t.PoolResyncs == 0 {
		t.PoolResyncs = 4
	}
	if t.ResyncFloor == 0 {
		t.ResyncFloor = 16 << 20
	}
}

// Limits of one volume.
const (
	flushBytes   = 64 << 20
	flushRegions = meta.DefaultLogSlots / 2 // a flush makes room in activity logs before they are full
	resyncWindow = 8
	joinerLag    = 16 << 20
	slowWindows  = 6  // of SlowFor
	slowWrites   = 10 // in them together: fewer tell nothing
)

// Options of a Manager.
type Options struct {
	Node     replication.NodeID
	Domain   replication.DomainID
	Boot     replication.BootID
	Instance replication.UUID // of this process
	// Incarnation returns that of the kvdb, not older than the last Configs.Load, and those that imports replaced by it. Nil: none.
	Incarnation func() (now replication.UUID, former []replication.UUID)
	Configs     Configs
	Peers       Peers
	// Usable reports whether a cluster domain may hold in-sync replicas and
	// coordinators: it is neither INACTIVE nor FENCED. Called on every control request.
	Usable func(replication.DomainID) bool
	// MayKeep reports whether replicas in a cluster domain are to stay in sync, and to be resynced:
	// it is not DRAINING.
	MayKeep func(replication.DomainID) bool
	// MayAttach reports whether volumes may be attached in a cluster domain: it is ACTIVE.
	MayAttach func(replication.DomainID) bool
	Groups    Groups // nil: no volume is in a group
	Timing    Timing
	Verify    VerifySchedule
	// Verified is told of each verify that has come to its end, to put it on record; nil: nobody is. It may wait, until ctx ends.
	Verified func(ctx context.Context, v replication.VolumeID, p *Pass) error
	Logger   *zap.Logger
}

// Manager runs the replicas that lie on this node and the volumes attached here.
// It implements transport.Handler for the coordinators on other nodes.
type Manager struct {
	o    Options
	node nodeIdentity
	lg   *zap.Logger

	budget  budget         // of resyncs
	running sync.WaitGroup // goroutines of volumes that wait for something
	resting resting
	telling sync.Mutex // see tellDomains; before mu
	mu      struct {
		sync.Mutex
		closed   bool
		hosts    map[hostKey]*host
		volumes  map[replication.VolumeID]*Volume
		down     map[replication.NodeID]bool
		sessions map[*session]struct{}
		skewed   map[replication.NodeID]int64 // when it was told that the node's version is none of this one's; see tellSkew
	}
}

type hostKey struct {
	vol replication.VolumeID
	id  replication.ReplicaID
}

// session is one that is served for a coordinator on another node.
type session struct {
	domain replication.DomainID
	cancel context.CancelFunc
}

var _ transport.Handler = (*Manager)(nil)

// NewManager returns a manager without replicas.
func NewManager(o Options) *Manager {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	o.Timing.ensureDefaults()
	m := &Manager{o: o, node: nodeIdentity{boot: o.Boot, instance: o.Instance, grant: int64(o.Timing.LeaseGrant)}, lg: o.Logger}
	m.budget.init(&m.o.Timing)
	m.mu.hosts = make(map[hostKey]*host)
	m.mu.volumes = make(map[replication.VolumeID]*Volume)
	m.mu.down = make(map[replication.NodeID]bool)
	m.mu.sessions = make(map[*session]struct{})
	m.mu.skewed = make(map[replication.NodeID]int64)
	return m
}

// AddReplica serves a replica of this node from now on. The storage is the
// manager's until RemoveReplica or Close, and remains the caller's on an error.
func (m *Manager) AddReplica(v replication.VolumeID, id replication.ReplicaID, st Storage) error {
	lg := m.lg.With(zap.Stringer("volume-id", v), zap.Stringer("replica-id", id))
	h, err := newHost(v, id, st.Info().Size, st, &m.node, lg) // reads the disk: not with the lock
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k := hostKey{v, id}
	switch {
	case m.mu.closed:
		return replication.ErrClosed
	case m.mu.hosts[k] != nil:
		return fmt.Errorf("replication/volume: replica %s of volume %s is served already", id, v)
	}
	m.mu.hosts[k] = h
	return nil
}

// RemoveReplica ends the service of a replica and closes its storage. Absent is nil. When ctx ends while
// the disk does not answer the error wraps ErrNotAtRest: the replica serves nobody any more, its storage
// is in use still, and RemoveReplica is to be called again.
func (m *Manager) RemoveReplica(ctx context.Context, v replication.VolumeID, id replication.ReplicaID) error {
	h := m.host(v, id)
	if h == nil {
		return nil
	}
	err := h.close(ctx)
	if errors.Is(err, ErrNotAtRest) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.hosts[hostKey{v, id}] == h {
		delete(m.mu.hosts, hostKey{v, id})
	}
	return err
}

// HasReplica reports whether a replica is served here.
func (m *Manager) HasReplica(v replication.VolumeID, id replication.ReplicaID) bool {
	return m.host(v, id) != nil
}

func (m *Manager) host(v replication.VolumeID, id replication.ReplicaID) *host {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.hosts[hostKey{v, id}]
}

// track remembers a session served, so that it can be ended when its domain is fenced.
func (m *Manager) track(d replication.DomainID, cancel context.CancelFunc) (untrack func()) {
	s := &session{domain: d, cancel: cancel}
	m.mu.Lock()
	m.mu.sessions[s] = struct{}{}
	m.mu.Unlock()
	if !m.o.Usable(d) {
		cancel() // fenced between the check and here
	}
	return func() {
		m.mu.Lock()
		delete(m.mu.sessions, s)
		m.mu.Unlock()
	}
}

// mayTake holds an attach to the coordinator that it was decided to replace, on which safety does not depend, and a resume to
// the attachment that it goes on with, on which it does: the configuration is compared and set, so that nobody else has
// served the volume since the last change of that attachment (I23b).
func (m *Manager) mayTake(cfg *replication.Config, o AttachOptions) error {
	from := o.TakeFrom
	switch c := cfg.Coord; {
	case cfg.Phase == replication.PhaseDeleting:
		return fmt.Errorf("%w: it is being deleted", replication.ErrVolumeNotFound)
	case o.Named != replication.AttachID{}:
		if cfg.Phase != replication.PhaseRecovering || c.Node != m.o.Node || c.AttachID != o.Named {
			return fmt.Errorf("%w: it is not handed over to this node as attachment %s, or was taken back", replication.ErrNotCoordinator, o.Named)
		}
		return nil
	case o.Resume != replication.AttachID{}:
		given := c != nil && cfg.Phase == replication.PhaseRecovering && c.From.Node == m.o.Node && c.From.AttachID == o.Resume // and the other one has not come to serve
		if !given && (c == nil || c.Node != m.o.Node || c.AttachID != o.Resume) {
			return fmt.Errorf("%w: attachment %s has ended, the volume was detached or attached again since", replication.ErrNotCoordinator, o.Resume)
		}
		return nil
	case o.Still:
		if c == nil || from == nil || *c != *from {
			return fmt.Errorf("%w: the attachment that is to be ended has ended", replication.ErrNotCoordinator)
		}
		return nil
	case c == nil, c.Node == m.o.Node, from != nil && *c == *from:
		return nil
	default:
		return fmt.Errorf("%w: on node %s (domain %s), since a moment ago: detach it there first", replication.ErrBusy, c.Node, c.Domain)
	}
}

// start makes the volume and begins its takeover, unless somebody else just did; grouped, whether it is in a group.
func (m *Manager) start(id replication.VolumeID, cfg *replication.Config, rev uint64, how AttachOptions, grouped bool) error {
	t := m.o.Timing
	attach := how.Resume
	switch none := (replication.AttachID{}); {
	case how.Named != none:
		attach = how.Named
	case attach == none:
		attach = replication.AttachID(replication.NewUUID())
	}
	var local replication.ReplicaID
	for r, mem := range cfg.Members {
		if mem.Node == m.o.Node {
			local = r
		}
	}
	var incarnation replication.UUID
	var former []replication.UUID
	if m.o.Incarnation != nil {
		incarnation, former = m.o.Incarnation()
	}
	v := &Volume{
		m: m, id: id, attach: attach, lg: m.lg.With(zap.Stringer("volume-id", id)),
		serving: make(chan struct{}), dead: make(chan struct{}), idle: make(chan struct{}),
		opts: core.Options{
			Volume: id, Node: m.o.Node, Domain: m.o.Domain, Boot: m.o.Boot, Attach: attach, Resume: attach == how.Resume,
			Incarnation: incarnation, Former: former, Local: local,
			SuspectTimeout: int64(t.Suspect), OpTimeout: int64(t.Operation), SealTimeout: int64(t.Seal),
			EvictSlow: int64(t.EvictSlow), SlowWindow: int64(t.SlowFor) / slowWindows, SlowWindows: slowWindows, SlowWrites: slowWrites, SlowRest: int64(t.SlowRest),
			LeaseTime: int64(t.Lease), LeaseRest: int64(t.LeaseRest), ConfirmReads: t.ConfirmReads, LossyTimeout: int64(t.Lossy), StallTimeout: int64(t.Stall), RetryInterval: int64(t.Retry),
			FlushInterval: int64(t.Flush), FlushBytes: flushBytes, FlushRegions: flushRegions, ResyncRate: t.ResyncRate,
			ResyncFloor: t.ResyncFloor, ResyncWindow: resyncWindow, JoinerLag: joinerLag, GroupTimeout: int64(t.Group), GroupRest: int64(t.GroupRest), Group: grouped, Rand: rand.Uint64,
		},
	}
	v.core = core.New(v.opts, cfg, rev)
	v.size.Store(v.core.Size())
	v.ctx, v.cancel = context.WithCancel(context.Background())
	for _, r := range v.core.Members() {
		l := &link{id: r, node: cfg.Members[r].Node}
		v.links = append(v.links, l)
		if l.node == m.o.Node {
			v.farFirst = append(v.farFirst, l)
		} else {
			v.farFirst = slices.Insert(v.farFirst, 0, l)
		}
	}
	v.verifier.days, v.turn = make([]healDay, len(v.links)), newResyncTurn(len(v.links))
	v.status.Store(&Status{Stall: core.StallTakeover, StalledSince: time.Now(), Config: cfg})
	m.mu.Lock()
	if w := m.mu.volumes[id]; w != nil || m.mu.closed {
		m.mu.Unlock()
		v.cancel()
		if w == nil {
			return replication.ErrClosed
		}
		return nil
	}
	m.mu.volumes[id] = v
	v.clock.runs = true
	m.running.Go(v.tick) // before Close waits
	m.mu.Unlock()
	m.begin(v, cfg)
	return nil
}

// begin tells a coordinator that has not started what there is to know, and starts it.
func (m *Manager) begin(v *Volume, cfg *replication.Config) {
	m.mu.Lock()
	// What PeerUp tells from now on comes behind this in the inbox.
	work := false
	for i, l := range v.links {
		work = v.in.post(volumeInput{kind: inUp, member: i, flag: !m.mu.down[l.node]}) || work
	}
	m.mu.Unlock()
	if work {
		v.work()
	}
	m.tellDomains(v, cfg)
	v.post(volumeInput{kind: inStart})
}

// tellDomains tells a volume which of its members' domains may hold in-sync replicas, and which are to. A
// coordinator in a domain that is not ACTIVE evicts nobody by plan: it is to end itself.
// One at a time: the last to tell has asked last.
func (m *Manager) tellDomains(v *Volume, cfg *replication.Config) {
	m.telling.Lock()
	defer m.telling.Unlock()
	for i, l := range v.links {
		d := cfg.Members[l.id].Domain
		v.post(volumeInput{kind: inUsable, member: i, flag: m.o.Usable(d)},
			volumeInput{kind: inKept, member: i, flag: m.o.MayKeep(d) || !m.o.MayAttach(m.o.Domain)})
	}
}

// Volume returns the volume if it is attached here, or nil.
func (m *Manager) Volume(id replication.VolumeID) *Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.volumes[id]
}

// Volumes returns what is attached here.
func (m *Manager) Volumes() []*Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	var vs []*Volume
	for _, v := range m.mu.volumes {
		vs = append(vs, v)
	}
	return vs
}

// forget drops a volume that has ended.
func (m *Manager) forget(v *Volume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.volumes[v.id] == v {
		delete(m.mu.volumes, v.id)
	}
}

// DomainsChanged tells that Usable, MayKeep and MayAttach may answer differently now. Sessions of
// coordinators in a domain that is not usable end, attached volumes drop the
// replicas there, and if it is this node's own domain, its volumes are killed.
func (m *Manager) DomainsChanged() {
	m.mu.Lock()
	sessions := slices.Collect(maps.Keys(m.mu.sessions))
	m.mu.Unlock()
	for _, s := range sessions {
		if !m.o.Usable(s.domain) {
			s.cancel()
		}
	}
	own := m.o.Usable(m.o.Domain)
	for _, v := range m.Volumes() {
		if !own {
			v.kill(replication.ErrDomainFenced)
			continue
		}
		m.tellDomains(v, v.Status().Config)
	}
}

// PeerUp tells whether another node answers beats.
func (m *Manager) PeerUp(n replication.NodeID, up bool) {
	m.mu.Lock()
	if up {
		delete(m.mu.down, n)
	} else {
		m.mu.down[n] = true
	}
	m.mu.Unlock()
	for _, v := range m.Volumes() {
		for i, l := range v.links {
			if l.node == n {
				v.post(volumeInput{kind: inUp, member: i, flag: up})
			}
		}
	}
}

// ConfigChanged tells of a configuration seen in the kvdb.
func (m *Manager) ConfigChanged(cfg *replication.Config) {
	if v := m.Volume(cfg.Volume); v != nil {
		v.post(volumeInput{kind: inSeen, cfg: cfg})
	}
}

// Close detaches what is attached as far as ctx allows, and closes every replica. One whose disk does
// not answer within Timing.Rest after that is left as it is, without the mark of a clean
// stop; the error wraps ErrNotAtRest then.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.mu.closed = true
	m.mu.Unlock()
	var errs []error
	for _, v := range m.Volumes() {
		if err := m.Detach(ctx, v.id); err != nil {
			errs = append(errs, err)
			v.kill(replication.ErrClosed)
		}
		<-v.dead
	}
	m.running.Wait() // their contexts have ended
	m.mu.Lock()
	for s := range m.mu.sessions {
		s.cancel()
	}
	hosts := slices.Collect(maps.Values(m.mu.hosts))
	clear(m.mu.hosts)
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.o.Timing.Rest)
	defer cancel()
	closed := make(chan error, len(hosts))
	for _, h := range hosts {
		go func() {
			err := h.close(ctx)
			if errors.Is(err, ErrNotAtRest) {
				h.lg.Error("replica left in use, its disk does not answer", zap.String("pool", h.st.Pool()), zap.Error(err))
			}
			closed <- err
		}()
	}
	for range hosts {
		errs = append(errs, <-closed)
	}
	return errors.Join(errs...)
}

package clusterdomain

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
)

// Volumes is what the manager asks of the volumes.
type Volumes interface {
	// Facts returns all volumes that have a configuration, read linearizably. Coordinator.Online is the manager's to fill.
	Facts(ctx context.Context) ([]arbiter.Volume, error)

	// EvictDetached takes the replicas in the domain, which is DRAINING, out of the in-sync set of a detached volume.
	// A volume that was attached or changed meanwhile is left alone; that is no error.
	EvictDetached(ctx context.Context, volume, domain string) error

	// Receipt returns the receipt of the volume (an id) for an automatic failover, nil if there is none.
	Receipt(ctx context.Context, volume string, failover uint64) (*Receipt, error)
}

// Options of a Manager. Cluster, Node.Name, Node.Domain and Volumes are required.
type Options struct {
	Cluster string
	Node    Node          // what this node tells of itself, but for Pools, Instance and Fragile
	Pools   func() []Pool // called at every Refresh; nil: none. Must not block.
	Fragile func() int    // how many devices end with this process; as Pools
	Volumes Volumes

	TTL     time.Duration // of the registration; default 10 s
	Refresh time.Duration // how often a changed registration is written; default 10 s
	Poll    time.Duration // how often the domains are read in any case; default 5 s
	// Failover says when a domain that is lost is fenced by itself, and who takes over. The zero value: never.
	Failover Failover
	Logger   *zap.Logger
}

func (o *Options) ensureDefaults() {
	if o.Pools == nil {
		o.Pools = func() []Pool { return nil }
	}
	if o.Fragile == nil {
		o.Fragile = func() int { return 0 }
	}
	if o.TTL == 0 {
		o.TTL = 10 * time.Second
	}
	if o.Refresh == 0 {
		o.Refresh = 10 * time.Second
	}
	if o.Poll == 0 {
		o.Poll = 5 * time.Second
	}
	o.Failover.ensureDefaults()
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
}

// Manager is one node's part in the cluster: it keeps the node registered, follows
// domains and nodes, and changes domains. All methods may be called concurrently.
type Manager struct {
	store kvdb.Store
	o     Options
	lg    *zap.Logger
	trail *audit.Log

	view  atomic.Pointer[View]
	ready chan struct{} // closed with the first view

	looking  looking  // what the arbiter of this node has seen
	assuming assuming // what is being attached here after a failover

	refreshing chan struct{} // has a value while somebody reads and publishes: views never go back
	urgent     atomic.Int64  // calls of Refresh
	polling    atomic.Pointer[context.CancelFunc]

	subs struct {
		sync.Mutex
		m map[chan *View]struct{}
	}
}

// New returns a Manager that knows nothing until Run.
func New(store kvdb.Store, o Options) (*Manager, error) {
	o.ensureDefaults()
	if err := errors.Join(
		CheckName("cluster", o.Cluster), CheckName("node", o.Node.Name), CheckName("domain", o.Node.Domain),
	); err != nil {
		return nil, err
	}
	if o.Volumes == nil {
		return nil, fmt.Errorf("%w: no Volumes given", ErrInvalid)
	}
	o.Node.Instance = uuid.NewString()
	m := &Manager{store: store, o: o, lg: o.Logger, trail: audit.New(store, o.Cluster, o.Node.Name), ready: make(chan struct{}), refreshing: make(chan struct{}, 1)}
	m.subs.m = make(map[chan *View]struct{})
	m.view.Store(&View{Local: o.Node.Name})
	return m, nil
}

// Run registers the node, follows the cluster and carries draining and rejoining domains on, until ctx
// ends, then it takes the registration back and returns nil. An error means that the node must not run as
// it is configured (ErrNodeDomain). A kvdb out of reach is waited for.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { m.follow(ctx) })
	wg.Go(func() { m.settleLoop(ctx) })
	if !m.o.Node.Witness {
		wg.Go(func() { m.arbiterLoop(ctx) })
		wg.Go(func() { m.assumeLoop(ctx) })
	}
	err := m.register(ctx)
	cancel()
	wg.Wait()
	return err
}

// Ready is closed when the cluster has been read for the first time.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// View returns the latest view; never nil, empty until Ready. It is cheap: one atomic load.
func (m *Manager) View() *View { return m.view.Load() }

// DomainState is the state of a domain as last read, "" if it is not known. It takes no
// lock and does no I/O: the data path asks it.
func (m *Manager) DomainState(domain string) State { return m.view.Load().State(domain) }

// LocalState is DomainState of this node's domain.
func (m *Manager) LocalState() State { return m.DomainState(m.o.Node.Domain) }

// Watch sends the present view at once and then a view after every change, until ctx ends and the channel is
// closed. A slow receiver gets the latest view only; that a domain was changed twice shows in its epoch.
func (m *Manager) Watch(ctx context.Context) <-chan *View {
	ch := make(chan *View, 1)
	m.subs.Lock()
	m.subs.m[ch] = struct{}{}
	ch <- m.View()
	m.subs.Unlock()
	context.AfterFunc(ctx, func() {
		m.subs.Lock()
		defer m.subs.Unlock()
		delete(m.subs.m, ch)
		close(ch)
	})
	return ch
}

// follow keeps the view current: after every change, and every Poll in any case.
func (m *Manager) follow(ctx context.Context) {
	domains := Signal(ctx, m.store, domainPrefix(m.o.Cluster))
	nodes := Signal(ctx, m.store, nodePrefix(m.o.Cluster))
	tick := time.NewTicker(m.o.Poll)
	defer tick.Stop()
	polled := make(chan error, 1)
	polling := false
	err := m.Refresh(ctx)
	for failing := false; ; {
		if err != nil && ctx.Err() == nil && !failing {
			m.lg.Warn("cluster state not readable", zap.Error(err))
		}
		failing = err != nil
		ok := true
		select {
		case <-ctx.Done():
			return
		case _, ok = <-domains:
			err = m.Refresh(ctx)
		case _, ok = <-nodes:
			err = m.Refresh(ctx)
		case err = <-polled:
			polling = false
		case <-tick.C:
			if !polling {
				polling = true
				go func() { polled <- m.poll(ctx) }() // a change does not wait for it
			}
		}
		if !ok {
			return // the store was closed
		}
	}
}

// Refresh reads the cluster, linearizably, and publishes what it finds: the view is
// then not older than the call. The view is kept current without it; it is for
// decisions that an operator expects to follow a change made on another node.
func (m *Manager) Refresh(ctx context.Context) error {
	m.urgent.Add(1)
	defer m.urgent.Add(-1)
	if cancel := m.polling.Load(); cancel != nil {
		(*cancel)()
	}
	return m.refresh(ctx)
}

// poll is Refresh without haste. It gives way to one that is called meanwhile, which does as well.
func (m *Manager) poll(ctx context.Context) error {
	ctx, cancel := context.WithCancel(kvdb.Patient(ctx, kvdb.Background))
	defer cancel()
	m.polling.Store(&cancel)
	defer m.polling.Store(nil)
	if m.urgent.Load() > 0 {
		return nil
	}
	err := m.refresh(ctx)
	if err != nil && ctx.Err() != nil {
		return nil // it gave way, or all ends
	}
	return err
}

func (m *Manager) refresh(ctx context.Context) error {
	select {
	case m.refreshing <- struct{}{}:
		defer func() { <-m.refreshing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	v, err := readView(ctx, m.store, m.o.Cluster, m.o.Node.Name, m.View())
	if err != nil {
		return err
	}
	m.subs.Lock()
	defer m.subs.Unlock()
	old := m.view.Swap(v)
	select {
	case <-m.ready:
	default:
		close(m.ready)
	}
	if v.sameAs(old) {
		return nil
	}
	m.logChanges(old, v)
	for ch := range m.subs.m {
		select {
		case <-ch: // the view that nobody took
		default:
		}
		ch <- v
	}
	return nil
}

func (m *Manager) logChanges(old, v *View) {
	for _, d := range v.Domains {
		if was, known := old.Domain(d.Name); !known || was.Epoch != d.Epoch {
			m.lg.Info("domain changed", zap.String("domain", d.Name), zap.String("state", string(d.State)),
				zap.String("prev-state", string(d.PrevState)), zap.Uint64("domain-epoch", d.Epoch),
				zap.String("actor", d.Actor), zap.String("reason", d.Reason))
		}
	}
	for _, n := range v.Nodes {
		if was, known := old.Node(n.Name); !known || was.Online != n.Online {
			m.lg.Info("node changed", zap.String("node", n.Name), zap.String("domain", n.Domain), zap.Bool("online", n.Online))
		}
	}
}

package clusterdomain

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
)

// Failover is the configuration of automatic failover (protocol.md 10.3) and what it has to be told. Without Attach
// nothing is attached by itself on this node.
type Failover struct {
	Enabled     bool
	Confirm     time.Duration // default 15 s
	MinInterval time.Duration // default 10 min
	QuorumLoss  int           // per cent; default 100
	AutoPromote bool
	Grant       time.Duration // of a read lease: a coordinator is silent then; default 3 s

	// LastHeard is when another node last answered this one, the zero time if it never did. Must not block. Nil: never.
	LastHeard func(node string) time.Time
	// Term is that of the kvdb's leader, as this node sees it now. Nil: not known.
	Term func(ctx context.Context) (uint64, error)
	// Now is a clock that goes on while the machine sleeps. Default: the monotonic one.
	Now func() time.Duration
	// Attach attaches a volume on this node as an operator would, for a reason that the audit trail keeps, and returns its epoch.
	Attach func(ctx context.Context, volume, reason string) (epoch uint64, err error)
}

func (f *Failover) ensureDefaults() {
	if f.Confirm == 0 {
		f.Confirm = 15 * time.Second
	}
	if f.MinInterval == 0 {
		f.MinInterval = 10 * time.Minute
	}
	if f.QuorumLoss == 0 {
		f.QuorumLoss = 100
	}
	if f.Grant == 0 {
		f.Grant = 3 * time.Second
	}
	if f.LastHeard == nil {
		f.LastHeard = func(string) time.Time { return time.Time{} }
	}
	if f.Term == nil {
		f.Term = func(context.Context) (uint64, error) { return 0, nil }
	}
	if f.Now == nil {
		start := time.Now()
		f.Now = func() time.Duration { return time.Since(start) }
	}
}

func (f *Failover) policy() arbiter.Policy {
	return arbiter.Policy{
		Enabled: f.Enabled, Confirm: int64(f.Confirm), Grant: int64(f.Grant), MinInterval: int64(f.MinInterval),
		QuorumLoss: f.QuorumLoss, AutoPromote: f.AutoPromote,
	}
}

// scanEvery is how often the arbiter looks.
const scanEvery = time.Second

// scanWait bounds one look: a kvdb that takes longer is not healthy.
func (m *Manager) scanWait() time.Duration { return max(time.Second, m.o.TTL/4) }

// looking is what the arbiter of a node has seen. Under mu: a status asks too.
type looking struct {
	sync.Mutex
	watch     arbiter.Watch
	sample    arbiter.Sample
	began     time.Time               // nothing was heard of anybody before
	last      uint64                  // the last failover, and when it was seen first
	lastSince time.Duration           // by Failover.Now
	idle      map[string]arbiter.Idle // that was logged last, by domain
}

// arbiterLoop looks after the other domains. All nodes look, so that the next one can go on where one
// that is lost with its domain has ended; the leader acts.
func (m *Manager) arbiterLoop(ctx context.Context) {
	tick := time.NewTicker(scanEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.Arbitrate(ctx)
	}
}

// Arbitrate looks once, and fences the domain that is due, if this node is to do it. Run does it all the time.
func (m *Manager) Arbitrate(ctx context.Context) {
	s := m.look(ctx)
	m.looking.Lock()
	m.looking.watch.See(s)
	m.looking.sample = s
	watch := m.looking.watch
	m.looking.Unlock()
	leads := arbiter.Leader(s.Nodes, s.Local) == m.o.Node.Name
	for _, d := range m.View().Domains {
		v := watch.Failover(m.o.Failover.policy(), s, d.Name)
		m.tell(d.Name, v)
		if !v.Fence || !leads {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 2*m.scanWait())
		defer cancel()
		if err := m.fence(ctx, d, &automatic{sample: s, watch: &watch}); err != nil {
			m.lg.Warn("lost domain not fenced, looking again", zap.String("domain", d.Name), zap.Error(err))
		}
		return
	}
}

// tell logs why a domain that may be lost is not fenced, when that changes.
func (m *Manager) tell(domain string, v arbiter.Verdict) {
	m.looking.Lock()
	defer m.looking.Unlock()
	was, known := m.looking.idle[domain]
	if m.looking.idle == nil {
		m.looking.idle = make(map[string]arbiter.Idle)
	}
	m.looking.idle[domain] = v.Idle
	if !v.Fence && v.Lost() && (!known || was != v.Idle) {
		m.lg.Warn("domain may be lost", zap.String("domain", domain), zap.String("idle", string(v.Idle)), zap.String("why", v.Text))
	}
}

package clusterdomain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
)

// look makes a Sample, healthy if the kvdb answered in time.
func (m *Manager) look(ctx context.Context) arbiter.Sample {
	s := arbiter.Sample{Now: int64(m.o.Failover.Now()), Local: m.o.Node.Domain, Late: int64(2*scanEvery + 2*m.scanWait()), SinceLast: -1}
	err := m.ask(ctx, &s)
	if s.Healthy = err == nil; !s.Healthy {
		m.lg.Debug("kvdb did not answer the arbiter", zap.Error(err))
	}
	m.observe(&s)
	return s
}

// ask reads what is to be had from the kvdb: while all nodes are registered little more than whether it answers.
func (m *Manager) ask(ctx context.Context, s *arbiter.Sample) error {
	suspect, err := m.probe(ctx, s)
	if err != nil || !suspect {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*m.scanWait()) // there may be many
	defer cancel()
	if s.Volumes, err = m.Facts(ctx); err != nil {
		return err
	}
	last, _, err := m.lastFailover(ctx)
	s.SinceLast = m.sinceLast(last)
	return err
}

// probe asks the kvdb what a healthy one answers at once, and reports whether a domain may be lost.
func (m *Manager) probe(ctx context.Context, s *arbiter.Sample) (suspect bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.scanWait())
	defer cancel()
	if s.Term, err = m.o.Failover.Term(ctx); err != nil {
		return false, fmt.Errorf("ask for the leader of the kvdb: %w", err)
	}
	kv, err := m.store.Get(ctx, nodePrefix(m.o.Cluster)+m.o.Node.Name)
	if err != nil {
		return false, fmt.Errorf("read the own registration: %w", err)
	}
	s.Own = strconv.FormatInt(int64(kv.Created), 10)
	if !m.suspect() {
		return false, ctx.Err()
	}
	if err := m.Refresh(ctx); err != nil {
		return false, err
	}
	return m.suspect(), ctx.Err()
}

// suspect reports whether another domain may be lost, by the view.
func (m *Manager) suspect() bool {
	v := m.View()
	return m.o.Failover.policy().Suspect(nodes(v), states(v.Domains), m.o.Node.Domain)
}

// observe adds what the node knows without the kvdb.
func (m *Manager) observe(s *arbiter.Sample) {
	v, last := m.View(), m.o.Failover.LastHeard
	s.Nodes, s.Domains, s.Silence = nodes(v), states(v.Domains), make(map[string]int64, len(v.Nodes))
	m.looking.Lock()
	defer m.looking.Unlock()
	now := time.Now()
	if m.looking.began.IsZero() {
		m.looking.began = now
	}
	for _, n := range s.Nodes {
		heard := last(n.Name)
		if heard.Before(m.looking.began) {
			heard = m.looking.began
		}
		s.Silence[n.Name] = int64(now.Sub(heard))
	}
}

// nodes are those of a view that hold data, as the arbiter knows them.
func nodes(v *View) []arbiter.Node {
	ns := make([]arbiter.Node, 0, len(v.Nodes))
	for _, n := range v.Nodes {
		if !n.Witness {
			ns = append(ns, arbiter.Node{Name: n.Name, Domain: n.Domain, Online: n.Online, Registration: n.Time.Format(time.RFC3339Nano)})
		}
	}
	return ns
}

// lastFailover returns the last automatic failover, without its volumes, and the revision of what says so; the zero value and 0 if
// there was none.
func (m *Manager) lastFailover(ctx context.Context) (FailoverRecord, kvdb.Revision, error) {
	key := lastFailoverKey(m.o.Cluster)
	kv, err := m.store.Get(ctx, key)
	if errors.Is(err, kvdb.ErrNotFound) {
		return FailoverRecord{}, 0, nil
	}
	if err != nil {
		return FailoverRecord{}, 0, fmt.Errorf("read %s: %w", key, err)
	}
	var r FailoverRecord
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return FailoverRecord{}, 0, fmt.Errorf("%w: %s: %w", ErrBadRecord, key, err)
	}
	return r, kv.Mod, nil
}

// sinceLast is how long ago r was, in nanoseconds: by its time, or if another node's clock was ahead since this node has known of it. -1
// for no failover.
func (m *Manager) sinceLast(r FailoverRecord) int64 {
	if r.ID == 0 {
		return -1
	}
	now := m.o.Failover.Now()
	m.looking.Lock()
	defer m.looking.Unlock()
	if m.looking.last != r.ID {
		m.looking.last, m.looking.lastSince = r.ID, now
	}
	return int64(max(time.Since(r.Fenced), now-m.looking.lastSince))
}

// Outlook says of each domain whether it would be fenced now and why not, as the arbiter of this node sees it. vols are as Facts
// returns them.
func (m *Manager) Outlook(vols []arbiter.Volume) map[string]arbiter.Verdict {
	m.looking.Lock()
	defer m.looking.Unlock()
	s := m.looking.sample
	s.Volumes = vols
	all := make(map[string]arbiter.Verdict, len(s.Domains))
	for d := range s.Domains {
		all[d] = m.looking.watch.Failover(m.o.Failover.policy(), s, d)
	}
	return all
}

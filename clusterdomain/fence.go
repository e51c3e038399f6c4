package clusterdomain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
)

// FailoverRecord is what is kept of an automatic failover. Times are by the clock of the node that acted, for people.
type FailoverRecord struct {
	ID          uint64    `json:"id"` // from 1
	Domain      string    `json:"domain"`
	DomainEpoch uint64    `json:"dom_epoch"` // of the domain, from the failover on
	To          string    `json:"to"`
	Promoted    bool      `json:"promoted,omitempty"` // To was STANDBY
	Actor       string    `json:"actor"`
	Why         string    `json:"why"`
	Nodes       []string  `json:"nodes"` // of the domain, whose registrations were gone
	Heard       time.Time `json:"heard"` // when a node with volumes attached last answered
	Gone        time.Time `json:"gone"`  // when the last of the registrations was found to be gone
	Fenced      time.Time `json:"fenced"`
	// Volumes are those that were attached in the domain; More of them are not listed.
	Volumes []FailoverVolume `json:"volumes,omitempty"`
	More    int              `json:"more,omitempty"`
}

// FailoverVolume is a volume that was attached in a domain when that was fenced.
type FailoverVolume struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	From  string `json:"from"` // node
	Epoch uint64 `json:"epoch"`
	// To is the node that was to attach it; another one does if that is lost too. "": Cause says why it stays as it is.
	To    string        `json:"to,omitempty"`
	Cause arbiter.Cause `json:"cause,omitempty"`
	Text  string        `json:"text,omitempty"`
	// Moved is where it was attached, nil if it has not been yet. Kept apart.
	Moved *Moved `json:"-"`
}

// Moved is what became of a volume.
type Moved struct {
	Node     string    `json:"node"`
	Epoch    uint64    `json:"epoch,omitempty"`
	Attached time.Time `json:"attached,omitzero"` // zero: not yet, Error says why
	Attempts int       `json:"attempts"`
	Error    string    `json:"error,omitempty"`
}

const (
	keepFailovers = 20   // records; the oldest are forgotten
	listVolumes   = 1000 // of one failover: the record has to fit into a value
)

// automatic is the part of a proposal that an arbiter makes.
type automatic struct {
	sample arbiter.Sample
	watch  *arbiter.Watch
}

// errMoved is why a failover did not take place that was due a moment ago.
var errMoved = errors.New("clusterdomain: something moved meanwhile")

// fence fences a domain that is lost. One attempt: after an error or in doubt the next look decides anew, when the kvdb is known to be healthy.
func (m *Manager) fence(ctx context.Context, d Domain, a *automatic) error {
	p := &proposal{
		m: m, cmd: arbiter.Fence, id: uuid.NewString(), auto: a,
		c: Change{Domain: d.Name, ExpectedEpoch: &d.Epoch, Actor: "arbiter on node " + m.o.Node.Name},
	}
	next, done, err := p.attempt(ctx)
	switch {
	case err != nil:
		return err
	case !done || next.Failover == nil:
		return errMoved
	}
	m.lg.Warn("lost domain fenced", zap.String("domain", next.Name), zap.Uint64("failover", next.Failover.ID), zap.String("why", next.Reason))
	if err := m.Refresh(ctx); err != nil {
		m.lg.Debug("cluster state not readable", zap.Error(err))
	}
	if err := m.forgetFailovers(ctx, next.Failover.ID); err != nil {
		m.lg.Debug("old failovers not forgotten", zap.Error(err))
	}
	return nil
}

// failOver is attempt for an arbiter: it decides again about what guard compares, and fences the domain if none of its
// nodes has come back.
func (p *proposal) failOver(ctx context.Context, doms []Domain, old Domain, vols []arbiter.Volume, guard []kvdb.Cmp) (Domain, bool, error) {
	m := p.m
	last, mod, err := m.lastFailover(ctx)
	if err != nil {
		return Domain{}, false, err
	}
	s := p.auto.sample
	s.Domains, s.Volumes, s.SinceLast = states(doms), vols, m.sinceLast(last)
	v := p.auto.watch.Failover(m.o.Failover.policy(), s, old.Name)
	if !v.Fence {
		return old, true, nil
	}
	id := last.ID + 1
	next := old.next(Fenced, p.c.Actor, fmt.Sprintf("automatic failover %d: %s", id, v.Text), p.id)
	next.Failover = &FailoverRef{ID: id, To: s.Local}
	r := record(next, v, s.Local)
	t := kvdb.Txn{If: append(guard, kvdb.Cmp{Key: lastFailoverKey(m.o.Cluster), Target: kvdb.CmpMod, Revision: mod})}
	entry, err := m.trail.Stage(ctx, next.record("failover"))
	if err != nil {
		return Domain{}, false, err
	}
	entry.AddTo(&t)
	for _, n := range v.Gone[:min(len(v.Gone), kvdb.MaxTxnOps-len(t.If))] { // a hint, of which a sample is enough
		t.If = append(t.If, kvdb.Cmp{Key: nodePrefix(m.o.Cluster) + n, Target: kvdb.CmpAbsent})
	}
	short := r
	short.Volumes, short.More = nil, 0
	puts := map[string]any{DomainKey(m.o.Cluster, next.Name): next, failoverKey(m.o.Cluster, id): r, lastFailoverKey(m.o.Cluster): short}
	if v.Promote {
		i := slices.IndexFunc(doms, func(d Domain) bool { return d.Name == s.Local })
		puts[DomainKey(m.o.Cluster, s.Local)] = doms[i].next(Active, p.c.Actor, fmt.Sprintf("automatic failover %d: it takes over from domain %s", id, old.Name), p.id)
	}
	for key, v := range puts {
		value, err := encode(v)
		if err != nil {
			return Domain{}, true, err
		}
		t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpPut, Key: key, Value: value})
	}
	return p.send(ctx, old, next, t)
}

// record makes the record of the failover that makes a domain next.
func record(next Domain, v arbiter.Verdict, to string) FailoverRecord {
	now := next.Time
	r := FailoverRecord{
		ID: next.Failover.ID, Domain: next.Name, DomainEpoch: next.Epoch, To: to, Promoted: v.Promote, Actor: next.Actor, Why: v.Text, Nodes: v.Gone,
		Heard: now.Add(-time.Duration(v.Silent)), Gone: now.Add(-time.Duration(v.GoneFor)), Fenced: now,
	}
	of := func(vol arbiter.Volume) FailoverVolume {
		return FailoverVolume{ID: vol.ID, Name: vol.Name, From: vol.Coordinator.Node, Epoch: vol.Epoch}
	}
	for _, b := range v.Stay { // first: they need somebody
		f := of(b.Volume)
		f.Cause, f.Text = b.Cause, b.Text()
		r.Volumes = append(r.Volumes, f)
	}
	for _, mv := range v.Moves {
		f := of(mv.Volume)
		f.To = mv.Node
		r.Volumes = append(r.Volumes, f)
	}
	r.More = max(0, len(r.Volumes)-listVolumes)
	r.Volumes = r.Volumes[:len(r.Volumes)-r.More]
	return r
}

// forgetFailovers deletes the records of failovers that are too old, id being the last one.
func (m *Manager) forgetFailovers(ctx context.Context, id uint64) error {
	kvs, _, err := m.store.List(ctx, failoverPrefix(m.o.Cluster))
	if err != nil || len(kvs) <= keepFailovers {
		return err
	}
	for _, kv := range kvs[:len(kvs)-keepFailovers] {
		name := strings.TrimPrefix(kv.Key, failoverPrefix(m.o.Cluster))
		if name == idText(id) {
			continue
		}
		moved, _, err := m.store.List(ctx, movedOf(m.o.Cluster, name))
		if err != nil {
			return err
		}
		for _, part := range slices.Collect(slices.Chunk(append(moved, kv), kvdb.MaxTxnOps)) { // the record itself last
			var t kvdb.Txn
			for _, kv := range part {
				t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpDelete, Key: kv.Key})
			}
			if _, err := m.store.Txn(ctx, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// Failovers returns the automatic failovers that are on record, the last one first, without their volumes.
func (m *Manager) Failovers(ctx context.Context) ([]FailoverRecord, error) {
	kvs, _, err := m.store.List(ctx, failoverPrefix(m.o.Cluster))
	if err != nil {
		return nil, fmt.Errorf("read failovers: %w", err)
	}
	var rs []FailoverRecord
	for _, kv := range slices.Backward(kvs) {
		r, err := parseFailover(kv)
		if err != nil {
			return nil, err
		}
		rs = append(rs, r)
	}
	return rs, nil
}

// FailoverReport returns an automatic failover with what became of its volumes; id 0 is the last one. ErrFailoverNotFound.
func (m *Manager) FailoverReport(ctx context.Context, id uint64) (FailoverRecord, error) {
	if id == 0 {
		last, _, err := m.lastFailover(ctx)
		if err != nil {
			return FailoverRecord{}, err
		}
		if id = last.ID; id == 0 {
			return FailoverRecord{}, fmt.Errorf("%w: there was none", ErrFailoverNotFound)
		}
	}
	kv, err := m.store.Get(ctx, failoverKey(m.o.Cluster, id))
	if errors.Is(err, kvdb.ErrNotFound) {
		return FailoverRecord{}, fmt.Errorf("%w: %d", ErrFailoverNotFound, id)
	}
	if err != nil {
		return FailoverRecord{}, fmt.Errorf("read failover %d: %w", id, err)
	}
	r, err := parseFailover(kv)
	if err != nil {
		return FailoverRecord{}, err
	}
	moved, err := m.moved(ctx, id)
	for i := range r.Volumes {
		r.Volumes[i].Moved = moved[r.Volumes[i].ID]
	}
	return r, err
}

// moved returns what became of the volumes of a failover, by id.
func (m *Manager) moved(ctx context.Context, id uint64) (map[string]*Moved, error) {
	prefix := movedPrefix(m.o.Cluster, id)
	kvs, _, err := m.store.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("read failover %d: %w", id, err)
	}
	all := make(map[string]*Moved, len(kvs))
	for _, kv := range kvs {
		mv := new(Moved)
		if err := json.Unmarshal(kv.Value, mv); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
		}
		all[strings.TrimPrefix(kv.Key, prefix)] = mv
	}
	return all, nil
}

func parseFailover(kv kvdb.KV) (FailoverRecord, error) {
	var r FailoverRecord
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return FailoverRecord{}, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	return r, nil
}

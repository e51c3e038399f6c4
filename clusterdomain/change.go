package clusterdomain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
)

// Change is an operator's order about one domain.
type Change struct {
	Domain        string
	ExpectedEpoch *uint64 // refuse if the domain is at another epoch; nil: whatever it is at
	Actor, Reason string

	// For Deactivate only.
	PeerLost       bool     // at once: the domain is (believed) gone, nothing is waited for
	AcceptDataLoss []string // volumes (ids or names) whose last in-sync replica may become unreachable
}

// LastCopyError is ErrLastCopy with the volumes.
type LastCopyError struct {
	Domain  string
	Volumes []arbiter.Volume
}

func (e *LastCopyError) Error() string {
	names := make([]string, len(e.Volumes))
	for i, v := range e.Volumes {
		if names[i] = v.Name; v.Name == "" {
			names[i] = v.ID
		}
	}
	list := strings.Join(names, ",")
	return fmt.Sprintf("%v: domain %s is not deactivated, it holds the only usable in-sync replica of: %s; wait until they are in sync elsewhere, or give them up with --accept-data-loss=%s",
		ErrLastCopy, e.Domain, list, list)
}

func (e *LastCopyError) Unwrap() error { return ErrLastCopy }

// Activate lets a domain return; see arbiter for what becomes of which state. It returns the
// domain as it is then. A domain that is active or rejoining already is left as it is.
//
// Errors: ErrDomainNotFound, ErrEpochChanged, ErrOutcomeUnknown, those of the store.
func (m *Manager) Activate(ctx context.Context, c Change) (Domain, error) {
	return m.change(ctx, c, arbiter.Activate)
}

// Deactivate takes a domain out of service. When it returns without error the
// new state is in force: no node of a FENCED domain can change a volume's configuration any more. A
// domain that is deactivated already is left as it is, but for DRAINING and INACTIVE with PeerLost.
//
// Errors: as Activate, and ErrLastCopy (a *LastCopyError), ErrUnknownVolume.
func (m *Manager) Deactivate(ctx context.Context, c Change) (Domain, error) {
	if c.PeerLost {
		return m.change(ctx, c, arbiter.Fence)
	}
	return m.change(ctx, c, arbiter.Drain)
}

func (m *Manager) change(ctx context.Context, c Change, cmd arbiter.Command) (Domain, error) {
	if err := CheckName("domain", c.Domain); err != nil {
		return Domain{}, err
	}
	p := &proposal{m: m, c: c, cmd: cmd, id: uuid.NewString()}
	d, err := p.run(ctx)
	if err != nil {
		return Domain{}, fmt.Errorf("%s domain %s: %w", cmd, c.Domain, err)
	}
	// The caller sees its own change; that the view cannot be read now is no failure of it.
	if err := m.Refresh(ctx); err != nil {
		m.lg.Debug("cluster state not readable", zap.Error(err))
	}
	return d, nil
}

// proposal is one order on its way into the store.
type proposal struct {
	m   *Manager
	c   Change
	cmd arbiter.Command
	id  string

	auto  *automatic    // nil: an operator's
	tried bool          // a transaction was sent whose outcome is not known
	base  kvdb.Revision // of the domain record that it was guarded on
}

// run looks, decides and writes, until one of the transactions has a definite end.
func (p *proposal) run(ctx context.Context) (Domain, error) {
	for {
		d, done, err := p.attempt(ctx)
		switch {
		case done:
			return d, err
		case err != nil && definite(err) && !p.tried:
			return Domain{}, err
		case err != nil && !sleep(ctx, retryAfter/10):
			if p.tried {
				return Domain{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
			}
			return Domain{}, err
		}
	}
}

// definite reports whether err, of a read or a transaction, will be the same again.
func definite(err error) bool {
	return !errors.Is(err, kvdb.ErrUnavailable) && !errors.Is(err, kvdb.ErrNoLeader)
}

// attempt looks and decides once. It is done with the domain in force or the reason for
// refusal; otherwise it is to be repeated.
func (p *proposal) attempt(ctx context.Context) (_ Domain, done bool, _ error) {
	m, c := p.m, p.c
	// Everything that the transaction compares is read before the volumes are.
	doms, _, err := readDomains(ctx, m.store, m.o.Cluster, m.View())
	if err != nil {
		return Domain{}, false, err
	}
	i := slices.IndexFunc(doms, func(d Domain) bool { return d.Name == c.Domain })
	if i < 0 {
		return Domain{}, true, fmt.Errorf("%w: known are %s", ErrDomainNotFound, names(doms))
	}
	old := doms[i]
	switch {
	case old.Proposal == p.id:
		return old, true, nil // an attempt of unknown outcome took effect
	case p.tried && old.Mod != p.base:
		return Domain{}, true, fmt.Errorf("%w: it may have been in force until %s made it %s: look and decide again", ErrOutcomeUnknown, old.Actor, old.State)
	case c.ExpectedEpoch != nil && *c.ExpectedEpoch != old.Epoch:
		return Domain{}, true, fmt.Errorf("%w: expected epoch %d, it is %s at epoch %d since %s (by %s): look and decide again",
			ErrEpochChanged, *c.ExpectedEpoch, old.State, old.Epoch, old.Time.Format(time.RFC3339), old.Actor)
	}
	guard := make([]kvdb.Cmp, 0, len(doms)+1)
	for _, d := range doms {
		guard = append(guard, kvdb.Cmp{Key: DomainKey(m.o.Cluster, d.Name), Target: kvdb.CmpMod, Revision: d.Mod})
	}
	var vols []arbiter.Volume
	if p.cmd != arbiter.Activate {
		key := ShrunkKey(m.o.Cluster, c.Domain)
		kv, err := m.store.Get(ctx, key)
		if err != nil && !errors.Is(err, kvdb.ErrNotFound) {
			return Domain{}, false, fmt.Errorf("read %s: %w", key, err)
		}
		guard = append(guard, kvdb.Cmp{Key: key, Target: kvdb.CmpMod, Revision: kv.Mod}) // 0: absent
		if vols, err = m.o.Volumes.Facts(ctx); err != nil {
			return Domain{}, false, fmt.Errorf("read volumes: %w", err)
		}
		for _, ref := range c.AcceptDataLoss {
			if !slices.ContainsFunc(vols, func(v arbiter.Volume) bool { return v.Is(ref) }) {
				return Domain{}, true, fmt.Errorf("%w: %q", ErrUnknownVolume, ref)
			}
		}
	}
	if p.auto != nil {
		return p.failOver(ctx, doms, old, vols, guard)
	}
	a := arbiter.Decide(arbiter.View{Domains: states(doms), Volumes: vols},
		arbiter.Question{Domain: c.Domain, Command: p.cmd, Accept: c.AcceptDataLoss})
	switch {
	case len(a.LastCopies) > 0:
		return Domain{}, true, &LastCopyError{Domain: c.Domain, Volumes: a.LastCopies}
	case a.Next == old.State:
		return old, true, nil
	}
	return p.write(ctx, old, a, guard)
}

func (p *proposal) write(ctx context.Context, old Domain, a arbiter.Decision, guard []kvdb.Cmp) (Domain, bool, error) {
	next := old.next(a.Next, p.c.Actor, p.c.Reason, p.id)
	next.AcceptDataLoss = a.Accepted
	value, err := encode(next)
	if err != nil {
		return Domain{}, true, err
	}
	t := kvdb.Txn{If: guard, Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: DomainKey(p.m.o.Cluster, next.Name), Value: value}}}
	entry, err := p.m.trail.Stage(ctx, next.record(verbs[p.cmd]))
	if err != nil {
		return Domain{}, false, err
	}
	entry.AddTo(&t)
	return p.send(ctx, old, next, t)
}

// send carries t out, which makes old next if what it compares has not changed.
func (p *proposal) send(ctx context.Context, old, next Domain, t kvdb.Txn) (Domain, bool, error) {
	res, err := p.m.store.Txn(ctx, t)
	switch {
	case errors.Is(err, kvdb.ErrNoLeader), errors.Is(err, kvdb.ErrInvalid):
		return Domain{}, false, err // definite: nothing was changed
	case err != nil:
		p.tried, p.base = true, old.Mod
		return Domain{}, false, err
	case !res.Succeeded:
		return Domain{}, false, nil // something moved: look again
	}
	next.Mod = res.Revision
	return next, true, nil
}

// verbs name the commands in the audit trail.
var verbs = map[arbiter.Command]string{
	arbiter.Activate: "domain activate",
	arbiter.Drain:    "domain deactivate",
	arbiter.Fence:    "domain deactivate --peer-lost",
}

// record is what the audit trail says of the change that made d.
func (d Domain) record(verb string) audit.Record {
	return audit.Record{
		Actor: d.Actor, Verb: verb, Object: "domain/" + d.Name, Reason: d.Reason,
		Outcome: fmt.Sprintf("%s, was %s", d.State, d.PrevState), Epoch: d.Epoch, Lost: d.AcceptDataLoss,
	}
}

// next is d changed to s.
func (d Domain) next(s State, actor, reason, proposal string) Domain {
	return Domain{
		Name: d.Name, State: s, Epoch: d.Epoch + 1, PrevState: d.State,
		Actor: actor, Reason: reason, Time: time.Now().UTC(), Proposal: proposal,
	}
}

func states(doms []Domain) map[string]State {
	m := make(map[string]State, len(doms))
	for _, d := range doms {
		m[d.Name] = d.State
	}
	return m
}

func names(doms []Domain) string {
	s := make([]string, len(doms))
	for i, d := range doms {
		s[i] = d.Name
	}
	return strings.Join(s, ", ")
}

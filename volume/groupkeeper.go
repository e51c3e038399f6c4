package volume

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
)

// GroupVolume is a volume attached on this node, as its group's keeper sees it.
type GroupVolume interface {
	ID() replication.VolumeID
	GroupStatus(ctx context.Context) (replication.GroupStatus, error)
	SetGroup(ctx context.Context, g replication.GroupOrder) (replication.GroupStatus, error)
}

// GroupKeeper keeps the volumes attached on a node in step with the other volumes of their groups (protocol.md 15.3). There is none that leads: each
// tells its volumes what the group's record and the configurations of all of it say, and writes into the record what they answer.
type GroupKeeper struct {
	c       *Catalogue
	domain  replication.DomainID
	volumes func() []GroupVolume
	lg      *zap.Logger
	wake    chan struct{}

	// By look alone: volumes that were told, as this attachment, that they are in no group; and when it was last told to all.
	alone  map[replication.VolumeID]GroupVolume
	allAt  time.Time
	mu     sync.Mutex
	events map[replication.VolumeID]bool // volumes that have had any since the last look; by mu
}

// NewGroupKeeper returns the keeper of a node in domain d; volumes are those attached there.
func NewGroupKeeper(c *Catalogue, d replication.DomainID, volumes func() []GroupVolume, lg *zap.Logger) *GroupKeeper {
	return &GroupKeeper{c: c, domain: d, volumes: volumes, lg: lg, wake: make(chan struct{}, 1), events: map[replication.VolumeID]bool{}}
}

// Grouped reports whether v is in a group (a linearizable read).
func (k *GroupKeeper) Grouped(ctx context.Context, v replication.VolumeID) (bool, error) {
	name, err := k.c.groupOf(ctx, v)
	return name != "", err
}

// Changed tells that a volume attached here may stand otherwise to its group. It does not block.
func (k *GroupKeeper) Changed(v replication.VolumeID) {
	k.mu.Lock()
	k.events[v] = true
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default: // it is due already
	}
}

// Timing of a keeper.
const (
	groupLookTimeout = 2 * time.Second // of one look at one volume
	groupLookAgain   = 5 * time.Second // even when nothing is known to have changed
	groupLookAll     = time.Minute     // at those too that are in no group, and were told so
	groupRetry       = 100 * time.Millisecond
)

// Run works until ctx ends.
func (k *GroupKeeper) Run(ctx context.Context) {
	groups := clusterdomain.Signal(ctx, k.c.store, k.c.keys.groups())
	configs := clusterdomain.Signal(ctx, k.c.store, k.c.keys.configs())
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-groups:
		case <-configs:
		case <-k.wake:
		case <-again.C:
		}
		next := groupLookAgain
		if !k.look(ctx) {
			next = groupRetry
		}
		again.Reset(next)
	}
}

// due are the volumes to be looked after: those in a group, and of the others, which may be many, those that were not told yet that they are in none,
// those to which something has happened, and now and then all.
func (k *GroupKeeper) due(ctx context.Context) []GroupVolume {
	k.mu.Lock()
	events := k.events
	k.events = map[replication.VolumeID]bool{}
	k.mu.Unlock()
	vs := k.volumes()
	ctx, cancel := context.WithTimeout(ctx, groupLookTimeout)
	defer cancel()
	in, err := k.c.groupedVolumes(ctx)
	if err != nil || time.Since(k.allAt) >= groupLookAll {
		k.alone = nil // what keeps from knowing is told of each
	}
	if k.alone == nil {
		k.allAt = time.Now()
	}
	alone := map[replication.VolumeID]GroupVolume{}
	vs = slices.DeleteFunc(vs, func(v GroupVolume) bool {
		id := v.ID()
		if k.alone[id] != v || in[id] || events[id] {
			return false
		}
		alone[id] = v
		return true
	})
	k.alone = alone
	return vs
}

// look looks after every volume that is due once, and reports whether all is as it should be.
func (k *GroupKeeper) look(ctx context.Context) bool {
	var wg sync.WaitGroup
	var mu sync.Mutex
	well := true
	for _, v := range k.due(ctx) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, groupLookTimeout)
			defer cancel()
			alone, err := k.tend(ctx, v)
			if alone && err == nil {
				mu.Lock()
				k.alone[v.ID()] = v
				mu.Unlock()
			}
			if err == nil || errors.Is(err, replication.ErrClosed) {
				return
			}
			if ctx.Err() == nil && !errors.Is(err, ErrConflict) {
				k.lg.Warn("group of a volume not looked after", zap.Stringer("volume-id", v.ID()), zap.Error(err))
			}
			mu.Lock()
			well = false
			mu.Unlock()
		})
	}
	wg.Wait()
	return well
}

// tend brings one volume and its group's record in step. What the volume is told was read after its term was asked for. alone: it was
// told that it is in none.
func (k *GroupKeeper) tend(ctx context.Context, v GroupVolume) (alone bool, _ error) {
	st, err := v.GroupStatus(ctx)
	if err != nil {
		return false, err
	}
	name, err := k.c.groupOf(ctx, v.ID())
	if err != nil {
		return false, err
	}
	if name == "" {
		_, err = v.SetGroup(ctx, replication.GroupOrder{})
		return true, err
	}
	for {
		e, err := k.c.Group(ctx, name)
		if errors.Is(err, ErrGroupNotFound) || err == nil && !e.Has(v.ID()) {
			return false, nil // it was taken out a moment ago, and a signal is on its way
		}
		if err != nil {
			return false, err
		}
		leave, left := e.Tell(v.ID(), k.domain, e.Configs)
		if st, err = v.SetGroup(ctx, replication.GroupOrder{Term: st.Term, In: true, Leave: leave, Left: left}); err != nil {
			return false, err
		}
		next, linked := e.Advance(&replication.Standing{
			Volume: v.ID(), Domain: k.domain, Term: st.Term, Lost: st.Lost, Kept: st.Kept, Late: st.Late,
		}, e.Configs, time.Now().UTC())
		if next == &e.Group {
			return false, nil
		}
		if err := k.c.swapGroup(ctx, e, next, linked); err != nil && !errors.Is(err, ErrConflict) {
			return false, err
		}
		k.tell(&e.Group, next)
	}
}

// tell logs what becomes of a group.
func (k *GroupKeeper) tell(old, now *replication.Group) {
	for d, s := range now.Splits {
		lg := k.lg.With(zap.String("group", now.Name), zap.String("domain", string(d)))
		o, was := old.Splits[d]
		switch {
		case s.Broken != "" && o.Broken == "":
			lg.Error("replicas of a group in a domain are not consistent with each other", zap.String("reason", s.Broken))
		case !was:
			lg.Warn("group splits from a domain", zap.Stringer("volume-id", s.By))
		case len(s.Stopped) == len(now.Volumes) && len(o.Stopped) < len(now.Volumes):
			lg.Info("group is split from a domain, whose replicas are an image of one moment")
		}
	}
	for d := range old.Splits {
		if _, ok := now.Splits[d]; !ok {
			k.lg.Info("group is linked with a domain again", zap.String("group", now.Name), zap.String("domain", string(d)))
		}
	}
}

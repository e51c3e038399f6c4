package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// Configs reads and changes volume configurations in the kvdb.
type Configs interface {
	// Load returns the configuration in force and its revision (a linearizable
	// read), or an error that wraps replication.ErrVolumeNotFound.
	Load(ctx context.Context, v replication.VolumeID) (*replication.Config, uint64, error)

	// Swap puts next in force if rev still is the revision in force and the cluster
	// domain actor may act. It returns the new revision; ErrConflict, ErrRefused, ErrNotSent
	// or ErrInvalidChange if that certainly did not happen; any other error means that the
	// outcome is unknown.
	Swap(ctx context.Context, rev uint64, next *replication.Config, actor replication.DomainID) (uint64, error)
}

// What Configs.Swap answers. Test with errors.Is.
var (
	ErrConflict = errors.New("replication/volume: another change of the configuration came first")
	ErrRefused  = errors.New("replication/volume: this node's cluster domain is not active")
	ErrNotSent  = errors.New("replication/volume: the kvdb is out of reach, nothing was changed")
	// ErrInvalidChange is a programmer's error: the change breaks a rule of configurations.
	ErrInvalidChange = errors.New("replication/volume: change breaks the rules of configurations")
)

// ErrNotAtRest: a replica that was to be closed has a request that its disk does not answer. It is not
// closed cleanly then, because what was asked may still land.
var ErrNotAtRest = errors.New("replication/volume: a replica has not come to rest, its disk does not answer")

const (
	kvdbTimeout = 5 * time.Second        // of one attempt
	kvdbPause   = 250 * time.Millisecond // between attempts of unknown outcome
)

// swap carries a change out until its outcome is known (I10).
func (v *Volume) swap(ch core.Change) {
	in := volumeInput{kind: inChange}
	defer func() { v.post(in) }()

	// A kvdb that does not answer a read gets no proposal: the outcome is certain then.
	ctx, cancel := context.WithTimeout(v.ctx, kvdbTimeout)
	cfg, rev, err := v.m.o.Configs.Load(ctx, v.id)
	cancel()
	switch {
	case errors.Is(err, replication.ErrVolumeNotFound):
		in = gone()
		return
	case err != nil:
		in.outcome = core.ChangeNotSent
		return
	case rev != ch.Rev:
		in.outcome, in.cfg, in.rev = core.ChangeConflict, cfg, rev
		return
	}
	for {
		ctx, cancel := context.WithTimeout(v.ctx, kvdbTimeout)
		rev, err := v.m.o.Configs.Swap(ctx, ch.Rev, ch.Next, v.m.o.Domain)
		cancel()
		switch {
		case err == nil:
			in.outcome, in.rev = core.ChangeOK, rev
			return
		case errors.Is(err, ErrRefused), errors.Is(err, ErrInvalidChange):
			v.lg.Warn("change of the configuration refused", zap.Error(err))
			in.outcome = core.ChangeRefused
			return
		case errors.Is(err, ErrNotSent):
			in.outcome = core.ChangeNotSent
			return
		case errors.Is(err, ErrConflict):
			if v.resolve(&in, ch) {
				return
			}
		}
		// Unknown: the same proposal again. It can take effect only once.
		if !v.pause(kvdbPause) {
			in.outcome = core.ChangeNotSent // nobody is left to care
			return
		}
	}
}

// gone ends a volume that the kvdb has not any more.
func gone() volumeInput {
	return volumeInput{kind: inKill, err: fmt.Errorf("%w: it was deleted while it was attached here", replication.ErrVolumeNotFound)}
}

// resolve finds out whose change came first.
func (v *Volume) resolve(in *volumeInput, ch core.Change) bool {
	ctx, cancel := context.WithTimeout(v.ctx, kvdbTimeout)
	defer cancel()
	cfg, rev, err := v.m.o.Configs.Load(ctx, v.id)
	switch {
	case errors.Is(err, replication.ErrVolumeNotFound):
		*in = gone()
	case err != nil:
		return false
	case cfg.ProposalID == ch.Next.ProposalID:
		in.outcome, in.rev = core.ChangeOK, rev // an attempt of unknown outcome had taken effect
	default:
		in.outcome, in.cfg, in.rev = core.ChangeConflict, cfg, rev
	}
	return true
}

// pause waits for d; false if the volume ended.
func (v *Volume) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-v.ctx.Done():
		return false
	}
}

package volume

import (
	"context"
	"errors"
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
	// domain actor may act, and returns the new revision. It may be called again with the
	// same arguments to find out what became of a call whose outcome is unknown.
	//
	// ErrConflict, ErrRefused, ErrInvalidChange, replication.ErrRolledBack and replication.ErrVolumeNotFound mean that no such call puts next in force any
	// more; ErrConflict also that an earlier one may have. ErrNotSent means that this call
	// changed nothing, and says nothing of an earlier one. With any other error the outcome is unknown.
	Swap(ctx context.Context, rev uint64, next *replication.Config, actor replication.DomainID) (uint64, error)
}

// What Configs.Swap answers. Test with errors.Is.
var (
	ErrConflict = errors.New("replication/volume: another change of the configuration came first")
	ErrRefused  = errors.New("replication/volume: this node's cluster domain is not active")
	ErrNotSent  = errors.New("replication/volume: the kvdb is out of reach, nothing was sent")
	// ErrInvalidChange is a programmer's error: the change breaks a rule of configurations.
	ErrInvalidChange = errors.New("replication/volume: change breaks the rules of configurations")
)

// ErrNotAtRest: a replica that was to be closed has a request that its disk does not answer. It is not
// closed cleanly then, because what was asked may still land.
var ErrNotAtRest = errors.New("replication/volume: a replica has not come to rest, its disk does not answer")

// kvdbTimeout bounds each request of an attempt.
const kvdbTimeout = 5 * time.Second

// swap makes one attempt of a change.
func (v *Volume) swap(of *core.Coordinator, ch core.Change) {
	in := volumeInput{kind: inChange, of: of}
	var err error
	in.outcome, in.cfg, in.rev, err = v.attempt(ch)
	v.logOutcome(in.outcome, err)
	v.post(in)
}

func (v *Volume) attempt(ch core.Change) (core.Outcome, *replication.Config, uint64, error) {
	ctx, cancel := context.WithTimeout(v.ctx, kvdbTimeout)
	defer cancel()
	rev, err := v.m.o.Configs.Swap(ctx, ch.Rev, ch.Next, v.m.o.Domain)
	switch {
	case err == nil:
		return core.ChangeOK, nil, rev, nil
	case errors.Is(err, replication.ErrVolumeNotFound):
		return core.ChangeGone, nil, 0, err
	case errors.Is(err, replication.ErrRolledBack):
		return core.ChangeRolledBack, nil, 0, err
	case errors.Is(err, ErrRefused), errors.Is(err, ErrInvalidChange):
		return core.ChangeRefused, nil, 0, err
	case errors.Is(err, ErrNotSent):
		return core.ChangeNotSent, nil, 0, err
	case errors.Is(err, ErrConflict):
		return v.inForce()
	default:
		return core.ChangeUnknown, nil, 0, err
	}
}

// inForce finds out which change came first.
func (v *Volume) inForce() (core.Outcome, *replication.Config, uint64, error) {
	ctx, cancel := context.WithTimeout(v.ctx, kvdbTimeout)
	defer cancel()
	cfg, rev, err := v.m.o.Configs.Load(ctx, v.id)
	switch {
	case errors.Is(err, replication.ErrVolumeNotFound):
		return core.ChangeGone, nil, 0, err
	case err != nil:
		return core.ChangeUnknown, nil, 0, err
	}
	return core.ChangeConflict, cfg, rev, nil
}

// logOutcome says once that the configuration cannot be changed, and why, and once that
// it can be again. One attempt at a time is under way.
func (v *Volume) logOutcome(out core.Outcome, err error) {
	why := ""
	switch out {
	case core.ChangeNotSent, core.ChangeUnknown:
		why = "kvdb"
	case core.ChangeRefused:
		why = "refused"
	case core.ChangeRolledBack, core.ChangeGone:
		why = string(core.StallRollback)
	case core.ChangeOK, core.ChangeConflict:
	}
	switch {
	case why == v.noChange || v.ctx.Err() != nil:
	case why == "":
		v.lg.Info("configuration can be changed again")
	default:
		v.lg.Warn("configuration cannot be changed", zap.String("cause", why), zap.Error(err))
	}
	v.noChange = why
}

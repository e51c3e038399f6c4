package volume

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/wire"
)

// Status is what an attached volume is doing. It must not be changed.
type Status struct {
	Config       *replication.Config
	Term         replication.Term
	Unprotected  bool       // writes go on without what the protection asks for, because it was away for too long
	Stall        core.Stall // why writes do not proceed, "" if they do
	StalledSince time.Time
	Detaching    bool // it was asked to detach, and will when nothing stalls it
	InSync       []replication.ReplicaID
	Resync       *core.Progress // nil if there is none
	ResyncRate   int64          // bytes a second, of the resync under way, lately
	ResyncSince  time.Time
	Waits        []replication.ReplicaID                 // to be resynced, for their turn
	Rests        map[replication.ReplicaID]time.Duration // for so long those are not resynced that were evicted because they are slow
	Lacks        map[replication.ReplicaID]int64         // bytes that the replica on this node knows each of those out of sync to lack, about a second old
	Unreconciled int64                                   // bytes in which in-sync replicas may still differ
	Verify       VerifyStatus
	Damage       core.Damage // blocks that cannot be read
	Health       map[replication.ReplicaID]Health
}

// Status returns what the volume is doing; at most tickInterval old, and at rest as of when it came to rest or later.
func (v *Volume) Status() *Status { return v.status.Load() }

// Sealed returns what the in-sync replicas told of themselves at the takeover; nil before it has come to that.
func (v *Volume) Sealed() []core.Sealed {
	if s := v.sealed.Load(); s != nil {
		return *s
	}
	return nil
}

// InForce returns the configuration in force if it names this attachment as the one that serves, nil otherwise. It is the latest that there is of the volume; until
// the attachment has come to serve the kvdb alone may know of it, and no replica. An attachment that has ended has none, nor one that was handed over,
// unless it was taken back.
func (v *Volume) InForce() *replication.Config {
	s := v.Status()
	co := s.Config.Coord
	if isClosed(v.dead) || s.Config.Phase != replication.PhaseActive || co == nil || co.AttachID != v.attach || co.Term != s.Term {
		return nil
	}
	return s.Config
}

// kill ends the volume at once: its requests fail with err.
func (v *Volume) kill(err error) { v.post(volumeInput{kind: inKill, err: err}) }

// observe publishes the state after the worker's last step.
func (v *Volume) observe(events []core.Event) {
	for i := range events {
		v.log(&events[i])
		v.observeVerify(&events[i])
		v.observePolicy(&events[i])
		v.observeResize(&events[i])
		v.observeSnapshot(&events[i])
	}
	v.observeGroup(events)
	stall := v.core.Stall()
	old := v.status.Load()
	if len(events) == 0 && !v.ticked && old.Stall == stall && old.Config == v.core.Config() {
		return
	}
	v.ticked = false
	s := &Status{
		Config: v.core.Config(), Term: v.core.Term(), Stall: stall, InSync: v.core.InSync(),
		Detaching: v.leaving.Load(), Resync: v.core.Resync(), Unreconciled: int64(v.core.Unreconciled()) * replication.ResyncBlock,
		Unprotected: v.core.Unprotected(), StalledSince: old.StalledSince, ResyncSince: old.ResyncSince,
		Waits: v.waitsForTurn(), Rests: v.rests(), Lacks: v.lacks(),
		Verify: v.verifyStatus(), Damage: v.core.Damage(), Health: v.health(),
	}
	if stall != old.Stall {
		s.StalledSince = time.Now()
		if stall == core.StallNone {
			s.StalledSince = time.Time{}
		}
	}
	switch {
	case s.Resync == nil:
		s.ResyncSince = time.Time{}
	case old.Resync == nil || old.Resync.Replica != s.Resync.Replica:
		s.ResyncSince, v.meter = time.Now(), speed{}
		fallthrough
	default:
		s.ResyncRate = v.meter.measure(now(), int64(s.Resync.Total-s.Resync.Left)*replication.ResyncBlock)
	}
	v.status.Store(s)
	for _, done := range v.verifier.asked {
		close(done)
	}
	v.verifier.asked = nil
	if stall == core.StallNone && !v.wasServe {
		v.wasServe = true
		close(v.serving)
	}
	if err := v.ended(); err != nil && !v.wasDead && !v.end.noting {
		v.wasDead = true
		if !v.core.Detached() || !errors.Is(err, replication.ErrClosed) {
			v.deadErr = err
		}
		v.blocked.Store(true)
		v.dropTurn()
		v.m.forget(v)
		close(v.dead)
		v.cancel()
	}
}

// rests is for how long each replica is not resynced that was evicted because it is slow.
func (v *Volume) rests() map[replication.ReplicaID]time.Duration {
	var r map[replication.ReplicaID]time.Duration
	for i, l := range v.links {
		if d := v.core.Rests(i); d > 0 {
			if r == nil {
				r = make(map[replication.ReplicaID]time.Duration)
			}
			r[l.id] = time.Duration(d)
		}
	}
	return r
}

// speed measures how fast something goes on, so that what changes now and then does not make it jump.
type speed struct {
	at, done int64 // of the last sample
	rate     float64
}

// measure takes note that done bytes have been done at t ns, and returns bytes a second: mostly of the last ten seconds or so, 0 while it is not known.
func (s *speed) measure(t, done int64) int64 {
	const sample = int64(500 * time.Millisecond)
	switch passed := t - s.at; {
	case s.at == 0:
		s.at, s.done = t, done
	case passed >= sample:
		now := float64(done-s.done) / (float64(passed) / 1e9)
		if s.rate == 0 {
			s.rate = now
		}
		s.rate += (now - s.rate) * min(float64(passed)/10e9, 1)
		s.at, s.done = t, done
	}
	return int64(s.rate)
}

// log tells the story of the volume, one line a transition.
func (v *Volume) log(e *core.Event) {
	epoch := zap.Uint64("epoch", uint64(e.Epoch))
	replica := zap.Stringer("replica-id", e.Replica)
	switch e.Kind {
	case core.EventElected:
		v.lg.Info("takeover started", epoch)
	case core.EventServing:
		v.lg.Info("volume serving", epoch, zap.Int("unreconciled-blocks", e.Dirty))
	case core.EventHandedOver:
		v.lg.Info("volume handed over", epoch, zap.String("node", string(v.core.Config().Coord.Node)))
	case core.EventKept:
		v.lg.Warn("volume not handed over", epoch, zap.Error(e.Err))
	case core.EventEvicted:
		v.lg.Error("replica evicted", epoch, replica, zap.String("reason", e.Reason))
	case core.EventLogLost:
		v.lg.Warn("activity log lost, replica is compared in full", epoch, replica)
	case core.EventResyncStarted:
		v.lg.Info("resync started", epoch, replica, zap.Int("blocks", e.Dirty))
	case core.EventResyncStopped:
		v.lg.Warn("resync stopped", epoch, replica, zap.String("reason", e.Reason))
	case core.EventJoined:
		v.lg.Info("replica in sync", epoch, replica)
	case core.EventDetached:
		if e.Err != nil {
			v.lg.Error("volume detached without its last flush", epoch, zap.Error(e.Err))
			return
		}
		v.lg.Info("volume detached", epoch)
	case core.EventDied:
		v.lg.Error("volume lost", epoch, zap.Error(e.Err))
	case core.EventHealed, core.EventRecomputed, core.EventLost, core.EventDiffers, core.EventVerifyStarted, core.EventVerifyStopped, core.EventVerified:
		v.logDamage(e)
	case core.EventGroupLate:
		v.lg.Error("the other volumes of the group did not follow in time, I/O goes on", epoch)
	case core.EventUnprotected:
		v.lg.Error("writes go on without what the protection asks for", epoch, zap.Int64("stalled-ms", v.core.Config().Needs.StallMs))
	case core.EventProtected:
		v.lg.Info("protection met again", epoch)
	case core.EventPolicy:
		p := v.core.Config().Policy()
		v.lg.Info("change of the protection ended", epoch, zap.String("protection", string(p.Protection)), zap.Int("in-sync-needed", p.InSync), zap.Error(e.Err))
	case core.EventResized:
		if e.Err != nil {
			v.lg.Error("volume does not grow", epoch, zap.Stringer("replica-id", e.Replica), zap.Error(e.Err))
		} else {
			v.lg.Info("volume has its new size", epoch, zap.Int64("bytes", v.core.Size()))
		}
	case core.EventSnapshot:
		if e.Err != nil {
			v.lg.Warn("no snapshot taken", epoch, zap.Stringer("snapshot-id", e.Snapshot), zap.Error(e.Err))
			return
		}
		v.lg.Info("snapshot taken", epoch, zap.Stringer("snapshot-id", e.Snapshot), zap.Int("replicas", len(e.Holders)))
	case core.EventResyncProgress, core.EventHeld:
	}
}

// sessionLog tells of the sessions with one member: when one is lost and when there is one again, and in between at most
// every sessionLogEvery, however often it is tried; but at once that the versions differ, because only people can help that.
// By the volume's worker.
type sessionLog struct {
	lost  bool
	skew  bool  // it was told that the versions differ
	told  int64 // when, as now tells it
	tried int   // attempts since
}

const sessionLogEvery = int64(time.Minute)

// down notes that a session ended or could not be opened.
func (s *sessionLog) down(lg *zap.Logger, t int64, peer replication.NodeID, err error) {
	skew := errors.Is(err, wire.ErrVersion)
	switch {
	case !s.lost:
		lg.Warn("session ended", zap.String("peer", string(peer)), zap.Error(err))
	case t-s.told < sessionLogEvery && (s.skew || !skew):
		s.tried++
		return
	default:
		lg.Warn("session still not open", zap.String("peer", string(peer)), zap.Int("attempts", s.tried+1), zap.Error(err))
	}
	s.lost, s.skew, s.told, s.tried = true, s.skew || skew, t, 0
}

// up notes that a session is open.
func (s *sessionLog) up(lg *zap.Logger, peer replication.NodeID) {
	if s.lost {
		lg.Info("session open again", zap.String("peer", string(peer)))
	}
	*s = sessionLog{}
}

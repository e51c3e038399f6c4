package volume

import (
	"context"
	"encoding/binary"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// VerifySchedule says when volumes are verified that are attached here.
type VerifySchedule struct {
	Every time.Duration // from the end of a pass to the next one; 0: only when asked
	Rate  int64         // bytes a second; 0 unlimited
}

// VerifyStatus is what is known of the verifies of an attached volume. None of it outlives the attachment.
type VerifyStatus struct {
	Running *core.VerifyProgress // nil if there is none
	Since   time.Time            // it began
	Rate    int64                // bytes a second, of it
	Last    *Pass                // that was complete; nil if there was none
	Next    time.Time            // begin of the next one; zero if none is due
}

// Pass is a verify that has come to its end.
type Pass struct {
	Began, Ended time.Time
	core.VerifyResult
}

// ETA is how long the verify will take, 0 if that is not known.
func (s *VerifyStatus) ETA() time.Duration {
	if s.Running == nil || s.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(s.Running.Size-s.Running.Done) / float64(s.Rate) * float64(time.Second))
}

// suspectHeals is how many healed blocks a day make a replica's disk suspect (protocol.md 9.4).
const suspectHeals = 16

// Health is what was found of a replica's disk while the volume is attached.
type Health struct {
	Healed  int64 // blocks that did not read as they were written, and were rewritten from another replica
	Suspect bool  // so many within a day that the disk is not to be trusted
}

// healDay counts the heals of a replica in a day, which begins with the first.
type healDay struct {
	began time.Time
	n     int64
}

func (d *healDay) add(n int64) {
	if time.Since(d.began) >= 24*time.Hour {
		*d = healDay{began: time.Now()}
	}
	d.n += n
}

func (d *healDay) suspect() bool { return d.n >= suspectHeals && time.Since(d.began) < 24*time.Hour }

// StartVerify begins to compare the in-sync replicas of an attached volume, each against its checksums as well, at most rate bytes
// a second, 0 being no limit and nil what is configured. One that runs goes on with that rate.
func (v *Volume) StartVerify(rate *int64) error {
	r := v.m.o.Verify.Rate
	if rate != nil {
		r = *rate
	}
	return v.askVerify(volumeInput{kind: inVerify, flag: true, rate: r})
}

// StopVerify ends a verify before its end. None is no error.
func (v *Volume) StopVerify() error { return v.askVerify(volumeInput{kind: inVerify}) }

// askVerify hands a request to the worker, and returns when the status shows its effect.
func (v *Volume) askVerify(in volumeInput) error {
	done := make(chan struct{})
	in.done = done
	v.post(in)
	select {
	case <-done:
	case <-v.dead:
	}
	if isClosed(v.dead) {
		return replication.ErrNotCoordinator
	}
	return nil
}

// verifier is the worker's knowledge of verifies.
type verifier struct {
	status VerifyStatus
	due    int64           // when the next one is, as now tells it; 0: not decided
	days   []healDay       // by member
	asked  []chan struct{} // closed when the status is published
}

// firstVerify is when a volume that comes to serve is verified first: not all that come at once are.
func (v *Volume) firstVerify(t int64) int64 {
	part := binary.BigEndian.Uint32(v.id[:]) // an id is random
	return t + int64(float64(v.m.o.Verify.Every)*float64(part)/(1<<32))
}

// verifyIfDue begins the pass that is due.
func (v *Volume) verifyIfDue(t int64) {
	every := int64(v.m.o.Verify.Every)
	if every == 0 || !v.wasServe {
		return
	}
	w := &v.verifier
	if w.due == 0 {
		w.due = v.firstVerify(t)
		w.status.Next = time.Now().Add(time.Duration(w.due - t))
	}
	if t >= w.due {
		w.due = t + every // if it is stopped; its end counts otherwise
		v.core.StartVerify(t, v.m.o.Verify.Rate)
	}
}

// observeVerify takes note of what a verify told.
func (v *Volume) observeVerify(e *core.Event) {
	w := &v.verifier
	switch e.Kind {
	case core.EventVerifyStarted:
		w.status.Since = time.Now()
	case core.EventVerified, core.EventVerifyStopped:
		if e.Kind == core.EventVerified {
			w.status.Last = &Pass{Began: w.status.Since, Ended: time.Now(), VerifyResult: *v.core.Verified()}
			v.notePass(w.status.Last)
		}
		if every := v.m.o.Verify.Every; every != 0 {
			w.due = now() + int64(every)
			w.status.Next = time.Now().Add(every)
		}
	case core.EventHealed:
		for i, l := range v.links {
			if l.id == e.Replica {
				w.days[i].add(int64(e.Blocks))
			}
		}
	default:
	}
}

// passTimeout is for telling Options.Verified.
const passTimeout = 30 * time.Second

// notePass hands a pass that is complete on to be recorded. I/O does not wait for that, nor the next pass.
func (v *Volume) notePass(p *Pass) {
	if v.m.o.Verified == nil {
		return
	}
	v.m.running.Go(func() {
		ctx, cancel := context.WithTimeout(v.ctx, passTimeout)
		defer cancel()
		if err := v.m.o.Verified(ctx, v.id, p); err != nil {
			v.lg.Warn("end of the verify is not on record", zap.Error(err))
		}
	})
}

// verifyStatus is what there is to tell.
func (v *Volume) verifyStatus() VerifyStatus {
	s := v.verifier.status
	if s.Running = v.core.Verify(); s.Running == nil {
		s.Since = time.Time{}
		return s
	}
	s.Next = time.Time{}
	if t := time.Since(s.Since); t > 0 {
		s.Rate = int64(float64(s.Running.Done) / t.Seconds())
	}
	return s
}

// health tells of each replica.
func (v *Volume) health() map[replication.ReplicaID]Health {
	hs := make(map[replication.ReplicaID]Health, len(v.links))
	for i, n := range v.core.Healed() {
		hs[v.links[i].id] = Health{Healed: n, Suspect: v.verifier.days[i].suspect()}
	}
	return hs
}

// logDamage tells of damage that was found, and what became of it.
func (v *Volume) logDamage(e *core.Event) {
	where := []zap.Field{zap.Int64("off", e.Off), zap.Int("blocks", e.Blocks)}
	switch e.Kind {
	case core.EventHealed:
		v.lg.Warn("damaged blocks rewritten from another replica", append(where, zap.Stringer("replica-id", e.Replica))...)
	case core.EventRecomputed:
		v.lg.Warn("blocks are equal on all replicas and their checksums wrong, checksums made anew", where...)
	case core.EventLost:
		v.lg.Error("no in-sync replica has the blocks right, reads of them fail until they are written", where...)
	case core.EventDiffers:
		v.lg.Error("in-sync replicas differ and each vouches for its data, reads of the blocks fail until they are written", where...)
	case core.EventVerifyStarted:
		v.lg.Info("verify started")
	case core.EventVerifyStopped:
		v.lg.Info("verify stopped")
	case core.EventVerified:
		r := v.core.Verified()
		v.lg.Info("verify complete", zap.Int("healed-blocks", e.Blocks), zap.Int("replicas", len(r.Sides)), zap.Bool("equal", r.Equal()))
	default:
	}
}

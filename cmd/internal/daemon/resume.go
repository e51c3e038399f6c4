package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/replication"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
)

// resumePause is the time between attempts to go on with an attachment, and to remove the record of one.
const resumePause = 500 * time.Millisecond

// readRecords finds what the process before this one showed, and returns the names under which clients will ask for it.
func (r *runtime) readRecords() (names []string, err error) {
	if r.records, err = openAttachments(filepath.Join(r.c.DataDir, "attachments")); err != nil {
		return nil, err
	}
	left, odd, err := r.records.list()
	if err != nil {
		return nil, err
	}
	for _, err := range odd {
		r.lg.Warn("record of an attachment cannot be used, its consumer gets errors", zap.Error(err))
	}
	r.left = left
	for _, a := range left {
		names = append(names, a.String())
	}
	return names, nil
}

// record makes the record of what is about to be shown. An attachment without one is as good as any, until the daemon dies:
// so a state directory that is full keeps nobody from its volume.
func (r *runtime) record(s *showing) error {
	if err := r.records.put(record{s.id, s.kind}); err != nil {
		r.lg.Error("attachment will not survive a restart of this daemon: make room in dataDir, then detach and attach again",
			zap.Stringer("volume-id", s.id.volume), zap.Error(err))
	} else {
		s.recorded = true
	}
	before := func(err error) {
		if s.left.Load() {
			return // it goes on with the next process
		}
		if s.recorded {
			r.forget(s.id)
		}
		if errors.Is(err, replication.ErrHandedOver) {
			s.attachment.Kill() // nobody is told what became of what was held: the one that has followed is asked again
		}
	}
	if !s.device.BeforeEnd(before) {
		<-s.device.Dead()
		return s.device.Err()
	}
	return nil
}

// drop removes a record that does no harm any more.
func (r *runtime) drop(a attachment) {
	if err := r.records.remove(a); err != nil {
		r.lg.Warn("record of an attachment is left, the next start removes it", zap.Stringer("volume-id", a.volume), zap.Error(err))
	}
}

// forget removes a record. Its attachment must not be revived from here on, so it is tried until it is done, and its
// consumers wait: they have not been told yet that it has ended.
func (r *runtime) forget(a attachment) {
	for told := false; ; told = true {
		err := r.records.remove(a)
		if err == nil {
			return
		}
		if !told {
			r.lg.Error("consumers wait until it is on disk that their attachment has ended: mend dataDir",
				zap.Stringer("volume-id", a.volume), zap.Error(err))
		}
		<-time.After(resumePause)
	}
}

// resume goes on with what the process before this one showed: each attachment until it is served, or has ended. ended tells
// that this node's cluster domain is out of service. It returns when all are decided or ctx ends.
func (r *runtime) resume(ctx context.Context, ended func() bool) {
	var all sync.WaitGroup
	for _, a := range r.left {
		one, cancel := context.WithCancel(ctx)
		r.mu.Lock()
		r.resuming[a.attachment] = cancel
		r.mu.Unlock()
		all.Go(func() {
			defer cancel()
			r.resumeUntil(ctx, one, a, ended)
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.resuming, a.attachment)
		})
	}
	all.Wait()
}

// giveUp ends the attempts to go on with attachments of a volume: it is to be detached.
func (r *runtime) giveUp(id replication.VolumeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, cancel := range r.resuming {
		if a.volume == id {
			cancel()
		}
	}
}

// resumeUntil goes on with one attachment. stop ends with the daemon, which leaves the record to the next one; ctx also
// when nobody wants the attachment any more.
func (r *runtime) resumeUntil(stop, ctx context.Context, a record, ended func() bool) {
	lg := r.lg.With(zap.Stringer("volume-id", a.volume))
	began := time.Now()
	for told := false; ; told = true {
		err := r.tryResume(ctx, a)
		switch {
		case err == nil:
			lg.Info("attachment goes on", zap.Duration("after", time.Since(began)))
			return
		case stop.Err() != nil:
			return
		case ctx.Err() != nil:
			r.drop(a.attachment)
			r.nbd.Forgo(a.String())
			return
		case isOver(err), errors.Is(err, replication.ErrDomainFenced) && ended():
			r.forget(a.attachment)
			r.nbd.Forgo(a.String())
			lg.Error("attachment has ended, its consumers get errors: attach again", zap.Error(err))
			return
		case !told:
			lg.Warn("attachment cannot go on yet, its consumers wait", zap.Error(err))
		}
		select {
		case <-time.After(resumePause):
		case <-ctx.Done():
		}
	}
}

// isOver reports whether an attachment can never go on after this error.
func isOver(err error) bool {
	return errors.Is(err, replication.ErrNotCoordinator) || errors.Is(err, replication.ErrVolumeNotFound) || errors.Is(err, replication.ErrPoisoned)
}

func (r *runtime) tryResume(ctx context.Context, a record) error {
	fe, err := r.frontend(string(a.kind))
	if err != nil {
		return err
	}
	unlock, err := r.lock(ctx, a.volume)
	if err != nil {
		return err
	}
	defer unlock()
	if s := r.showing(a.volume); s != nil {
		return fmt.Errorf("%w: attachment %s has ended, the volume is attached again", replication.ErrNotCoordinator, a.id)
	}
	v, err := r.volumes.Attach(ctx, a.volume, replvolume.AttachOptions{Resume: a.id})
	if err != nil {
		return err
	}
	_, err = r.show(ctx, fe, v)
	return err
}

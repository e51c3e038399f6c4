package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/csi/freeze"
	"github.com/tandem-storage/tandem/csi/mount"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/datapath/frontend/device"
	"github.com/tandem-storage/tandem/datapath/frontend/fuseloop"
	"github.com/tandem-storage/tandem/datapath/frontend/nbd"
	"github.com/tandem-storage/tandem/datapath/limit"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/volume"
)

// attachTimeout bounds an attach whose caller gives no deadline.
const attachTimeout = time.Minute

// runtime attaches volumes on this node: it makes the node their coordinator and
// shows them through a front end.
type runtime struct {
	c       *config.Config
	volumes *replvolume.Manager
	suspect func() // the kvdb was found to know less than a replica
	// formatting lets the attachments of a volume that begin until done is called keep the mark of a blank volume.
	formatting func(replication.VolumeID) (done func())
	// unshown lets them go on though the volume is being put back to a snapshot, which reverting tells of.
	unshown   func(replication.VolumeID) (done func())
	reverting func(context.Context, replication.VolumeID) error
	// frees is what the deletion of a snapshot of a replica on this node would give back, bytes.
	frees func(volume.LocalReplica, replication.SnapshotID) (int64, error)
	lg    *zap.Logger
	boot  replication.BootID // of this node

	nbd      *nbd.Server
	fuseloop *fuseloop.Frontend
	device   *device.Frontend
	freezer  *freeze.Freezer
	records  *attachments
	left     []record // by the process before this one

	mu       sync.Mutex
	shown    map[replication.VolumeID]*showing
	busy     map[replication.VolumeID]chan struct{} // volumes with an attach or detach under way; closed at its end
	resuming map[attachment]context.CancelFunc      // those that are to go on, and are not decided yet
	prepared map[replication.VolumeID]*prepared     // to follow other nodes
	limits   map[replication.VolumeID]volume.Limits // as of the last look at the catalogue
	borrowed map[replication.VolumeID]struct{}      // attached for nobody but who puts it back to a snapshot
}

// showing is a volume shown by a front end.
type showing struct {
	kind       frontend.Kind
	attachment frontend.Attachment
	device     *replvolume.Volume
	limited    *limit.Device // the same, as consumers get it
	id         attachment
	recorded   bool        // the next process may go on with it
	left       atomic.Bool // to the next process
	formats    bool        // it was attached for mkfs; under the volume's lock
}

// lost reports whether the volume or its device node is gone, or about to.
func (s *showing) lost() bool {
	select {
	case <-s.attachment.Done():
	case <-s.device.Dead():
	default:
		return false
	}
	return true
}

// ends reports whether the device ends with this process.
func (s *showing) ends() bool { return s.kind != frontend.KindDevice || !s.recorded }

var _ volume.Runtime = (*runtime)(nil)

func newRuntime(c *config.Config, m *replvolume.Manager, sec *transport.Security, boot replication.BootID, suspect func(), lg *zap.Logger) (*runtime, error) {
	r := &runtime{
		c: c, volumes: m, suspect: suspect, lg: lg, shown: make(map[replication.VolumeID]*showing),
		busy: make(map[replication.VolumeID]chan struct{}), resuming: make(map[attachment]context.CancelFunc),
		prepared: make(map[replication.VolumeID]*prepared), borrowed: make(map[replication.VolumeID]struct{}), boot: boot,
	}
	var err error
	if r.freezer, err = freeze.New(filepath.Join(c.DataDir, "frozen"), freeze.System{System: mount.System{Helper: mountHelper}}, lg); err != nil {
		return nil, err
	}
	if c.Role == config.RoleWitness {
		return r, nil
	}
	expected, err := r.readRecords()
	if err != nil {
		return nil, err
	}
	for _, a := range r.left {
		r.resuming[a.attachment] = func() {} // until it is begun
	}
	endpoints := []nbd.Endpoint{{Network: "unix", Address: c.Frontends.NBD.Socket}}
	if c.Frontends.NBD.Listen != "" {
		tls := sec.ServerTLS()
		endpoints = append(endpoints, nbd.Endpoint{Network: "tcp", Address: c.Frontends.NBD.Listen, TLS: tls, RequireTLS: tls != nil})
	}
	o := nbd.Options{Endpoints: endpoints, MaxRequests: c.Replication.MaxInflight, Expected: expected, Logger: lg}
	if r.nbd, err = nbd.Listen(o); err != nil {
		return nil, err
	}
	if r.device, err = device.New(device.Options{Server: r.nbd, NBDSocket: c.Frontends.NBD.Socket, Socket: c.Frontends.Device.Socket, Logger: lg}); err != nil {
		return nil, errors.Join(err, r.nbd.Close())
	}
	if err := fuseloop.Available(); err != nil {
		lg.Info("no loop devices on this machine", zap.Error(err))
		return r, nil
	}
	if r.fuseloop, err = fuseloop.New(fuseloop.Options{Dir: c.Frontends.FuseLoop.Dir, MaxRequests: c.Replication.MaxInflight, Helper: fuseloopHelper, Logger: lg}); err != nil {
		return nil, errors.Join(err, r.device.Close(), r.nbd.Close())
	}
	return r, nil
}

func (r *runtime) frontend(name string) (frontend.Frontend, error) {
	if name == "" {
		name = string(r.c.Frontends.Default)
	}
	switch {
	case r.nbd == nil:
		return nil, fmt.Errorf("%w: this node is a witness, volumes are attached on nodes with role node", frontend.ErrUnavailable)
	case frontend.Kind(name) == frontend.KindNBD:
		return r.nbd, nil
	case frontend.Kind(name) == frontend.KindDevice:
		return r.device, nil
	case frontend.Kind(name) != frontend.KindFuseLoop:
		return nil, fmt.Errorf("%w: front end %q is not known; use nbd, fuseloop or device", frontend.ErrUnavailable, name)
	case r.fuseloop == nil:
		return nil, fmt.Errorf("%w: loop devices need root, /dev/fuse and /dev/loop-control: %w; attach with front end nbd", frontend.ErrUnavailable, fuseloop.Available())
	}
	return r.fuseloop, nil
}

// lock waits until no other attach or detach of the volume is under way.
func (r *runtime) lock(ctx context.Context, id replication.VolumeID) (unlock func(), err error) {
	for {
		r.mu.Lock()
		wait := r.busy[id]
		if wait == nil {
			done := make(chan struct{})
			r.busy[id] = done
			r.mu.Unlock()
			return func() {
				r.mu.Lock()
				delete(r.busy, id)
				r.mu.Unlock()
				close(done)
			}, nil
		}
		r.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another attach or detach of the volume is under way: %w", replication.ErrStalled, ctx.Err())
		}
	}
}

// fragile is how many volumes are shown as devices that end with this process.
func (r *runtime) fragile() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.shown {
		if s.ends() {
			n++
		}
	}
	return n
}

func (r *runtime) showing(id replication.VolumeID) *showing {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shown[id]
}

// Attach implements volume.Runtime.
func (r *runtime) Attach(ctx context.Context, id replication.VolumeID, o volume.AttachOptions) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	if s := r.showing(id); s != nil {
		switch {
		case s.lost():
			select {
			case <-s.attachment.Done():
			case <-ctx.Done():
				return "", fmt.Errorf("%w: the device of the attachment that was lost is still there: %w", replication.ErrStalled, ctx.Err())
			}
		case o.Format && !s.formats:
			return "", fmt.Errorf("%w: it is attached for others than mkfs; detach it first", frontend.ErrBusy)
		case o.Frontend != "" && string(s.kind) != o.Frontend:
			return "", fmt.Errorf("%w: it is attached through front end %s; detach it first", frontend.ErrBusy, s.kind)
		default:
			return s.attachment.Path(), nil
		}
	}
	fe, err := r.frontend(o.Frontend)
	if err != nil {
		return "", err
	}
	if err := r.reverting(ctx, id); err != nil {
		return "", err
	}
	r.borrow(id, false)
	if o.Format {
		defer r.formatting(id)()
	}
	v, err := r.volumes.Attach(ctx, id, replvolume.AttachOptions{TakeFrom: o.TakeFrom})
	if errors.Is(err, replication.ErrRolledBack) {
		r.suspect()
	}
	if err != nil {
		return "", err
	}
	s, err := r.show(ctx, fe, v)
	if err != nil {
		defer r.drop(attachment{id, v.AttachID()})
		return "", errors.Join(err, r.volumes.Detach(ctx, id))
	}
	s.formats = o.Format
	return s.attachment.Path(), nil
}

// show shows a volume that is served. The record for the next process is made first: a consumer may come at once.
func (r *runtime) show(ctx context.Context, fe frontend.Frontend, v *replvolume.Volume) (*showing, error) {
	s := &showing{kind: fe.Kind(), device: v, id: attachment{v.ID(), v.AttachID()}}
	lg := r.lg.With(zap.Stringer("volume-id", v.ID()))
	if slices.Contains(comeBack, s.kind) {
		if err := r.record(s); err != nil {
			return nil, err
		}
	}
	s.limited = limit.New(v, limit.Rates{})
	a, err := fe.Attach(ctx, s.id.String(), s.limited)
	if err != nil {
		return nil, err
	}
	s.attachment = a
	r.mu.Lock()
	s.limited.SetRates(limit.Rates(r.limits[v.ID()]))
	r.shown[v.ID()] = s
	r.mu.Unlock()
	go r.guard(v.ID(), s)
	lg.Info("volume attached", zap.String("path", a.Path()))
	return s, nil
}

// guard kills the showing of a volume that was lost: its consumer must never
// again get an answer (I23b).
func (r *runtime) guard(id replication.VolumeID, s *showing) {
	<-s.device.Dead()
	if err := s.device.Err(); err != nil {
		s.limited.SetRates(limit.Rates{}) // who waits is told at once
		s.attachment.Kill()
	}
	<-s.attachment.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shown[id] == s {
		delete(r.shown, id)
	}
}

// limit holds volumes to their limits; those that are not named have none.
func (r *runtime) limit(in map[replication.VolumeID]volume.Limits) {
	r.mu.Lock()
	r.limits = in
	shown := maps.Clone(r.shown)
	r.mu.Unlock()
	for id, s := range shown {
		s.limited.SetRates(limit.Rates(in[id]))
	}
}

// Detach implements volume.Runtime.
func (r *runtime) Detach(ctx context.Context, id replication.VolumeID) error {
	r.giveUp(id)
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if s := r.showing(id); s != nil {
		if err := s.attachment.Detach(ctx); err != nil {
			return err
		}
		r.mu.Lock()
		delete(r.shown, id)
		r.mu.Unlock()
		if s.recorded {
			defer r.drop(s.id)
		}
	}
	if err := r.volumes.Detach(ctx, id); err != nil {
		return err
	}
	r.borrow(id, false)
	return nil
}

// Status implements volume.Runtime.
func (r *runtime) Status(_ context.Context, id replication.VolumeID) volume.Live {
	var l volume.Live
	if s := r.showing(id); s != nil {
		l.Path, l.Frontend = s.attachment.Path(), string(s.kind)
	}
	v := r.volumes.Volume(id)
	if v == nil {
		return l
	}
	st := v.Status()
	l.Stall, l.Unreconciled, l.Unprotected = stall(st), st.Unreconciled, st.Unprotected
	l.Replicas = make(map[replication.ReplicaID]volume.Progress)
	for id, h := range st.Health {
		l.Replicas[id] = volume.Progress{Healed: h.Healed, Suspect: h.Suspect}
	}
	for id, n := range st.Lacks {
		pr := l.Replicas[id]
		pr.Dirty = n
		l.Replicas[id] = pr
	}
	for _, id := range st.Waits {
		pr := l.Replicas[id]
		pr.Waits = true
		l.Replicas[id] = pr
	}
	for id, d := range st.Rests {
		pr := l.Replicas[id]
		pr.Rests = d
		l.Replicas[id] = pr
	}
	if p := st.Resync; p != nil {
		left := int64(p.Left) * replication.ResyncBlock
		total := int64(p.Total) * replication.ResyncBlock
		pr := l.Replicas[p.Replica]
		pr.Dirty, pr.Total, pr.Done, pr.Rate = left, total, total-left, st.ResyncRate
		if st.ResyncRate > 0 {
			pr.ETA = time.Duration(float64(left) / float64(st.ResyncRate) * float64(time.Second))
		}
		l.Replicas[p.Replica] = pr
	}
	l.Verify, l.Damage = verify(&st.Verify, st.Config), volume.Damage(st.Damage)
	return l
}

func verify(s *replvolume.VerifyStatus, cfg *replication.Config) *volume.Verify {
	y := &volume.Verify{Since: s.Since, Rate: s.Rate, ETA: s.ETA(), Next: s.Next}
	if s.Last != nil {
		y.Last = verified(cfg, s.Last)
	}
	if p := s.Running; p != nil {
		y.Running, y.Done, y.Total, y.Healed, y.Recomputed = true, p.Done, p.Size, p.Healed, p.Recomputed
	}
	return y
}

// SetPolicy implements volume.Runtime.
func (r *runtime) SetPolicy(ctx context.Context, id replication.VolumeID, p replication.Policy, expect replication.Epoch, reason string) error {
	v := r.volumes.Volume(id)
	if v == nil {
		return replication.ErrNotCoordinator
	}
	return v.SetPolicy(ctx, p, expect, reason)
}

// Grow implements volume.Runtime.
func (r *runtime) Grow(ctx context.Context, id replication.VolumeID, size int64) error {
	v := r.volumes.Volume(id)
	if v == nil {
		return replication.ErrNotCoordinator
	}
	if err := v.Grow(ctx, size); err != nil {
		return err
	}
	if s := r.showing(id); s != nil {
		return s.attachment.Resize(ctx)
	}
	return nil
}

// StartVerify implements volume.Runtime.
func (r *runtime) StartVerify(id replication.VolumeID, rate *int64) error {
	v := r.volumes.Volume(id)
	if v == nil {
		return replication.ErrNotCoordinator
	}
	return v.StartVerify(rate)
}

// StopVerify implements volume.Runtime.
func (r *runtime) StopVerify(id replication.VolumeID) error {
	v := r.volumes.Volume(id)
	if v == nil {
		return replication.ErrNotCoordinator
	}
	return v.StopVerify()
}

// close takes every showing away; consumers that still have a device open get errors. Those of devices that outlive this
// process wait for the next one instead.
func (r *runtime) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	r.mu.Lock()
	shown := maps.Clone(r.shown)
	r.mu.Unlock()
	r.freezer.Close() // while its devices are served
	var leave []*showing
	for id, s := range shown {
		if !s.ends() && !s.lost() {
			leave = append(leave, s)
			continue
		}
		if s.recorded {
			r.forget(s.id) // before its consumer is told
		}
		if err := s.attachment.Detach(ctx); err != nil {
			r.lg.Warn("device is taken away from its consumer", zap.Stringer("volume-id", id), zap.Error(err))
			s.attachment.Kill()
		}
	}
	var errs []error
	if r.nbd != nil {
		errs = append(errs, r.nbd.Close())
	}
	var left sync.WaitGroup
	for _, s := range leave {
		s.left.Store(true)
		left.Go(func() {
			lg := r.lg.With(zap.Stringer("volume-id", s.id.volume))
			if err := r.volumes.Leave(ctx, s.id.volume); err != nil {
				lg.Warn("attachment is left to the next process unsettled, which has to compare what was written lately", zap.Error(err))
				return
			}
			lg.Info("attachment is left to the next process")
		})
	}
	left.Wait()
	if r.device != nil {
		errs = append(errs, r.device.Close())
	}
	if r.fuseloop != nil {
		errs = append(errs, r.fuseloop.Close())
	}
	return errors.Join(errs...)
}

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/deploy/lab"
	"github.com/tandem-storage/tandem/internal/testseed"
)

// stormNodes serve CSI in TestStorm, two in each domain.
var stormNodes = []string{"a1", "a2", "b1", "b2"}

var rawBlock = &spec.VolumeCapability{
	AccessMode: onXFS.GetAccessMode(),
	AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}},
}

const (
	stormPatience = 10 * time.Minute       // how long an orchestrator repeats a call
	stormPause    = 500 * time.Millisecond // between two
	stormAttempt  = time.Minute            // for one
)

// storm is many volumes at once, each with an orchestrator that repeats every call until it succeeds, as sidecars and kubelets do, and somebody who kills
// daemons between the calls.
type storm struct {
	c     *cluster
	nodes map[string]*orchestrator
	steps atomic.Int64  // in the lives of the volumes that are done and not done again: who is killed at these lets the others get on
	more  chan struct{} // one more is

	mu      sync.Mutex
	figures map[string]*figure // of each kind of call
	again   map[string]int     // why something had to be repeated
}

// figure is how long the calls of a kind took, until they succeeded.
type figure []time.Duration

func (f figure) String() string {
	s := slices.Sorted(slices.Values(f))
	at := func(p int) time.Duration { return s[(len(s)-1)*p/100].Round(10 * time.Millisecond) }
	return fmt.Sprintf("%d in %v, %v, %v", len(s), at(50), at(95), at(100))
}

// stormVolume is one of them, and what it has to hold.
type stormVolume struct {
	s    *storm
	rng  *rand.Rand
	name string
	id   string
	as   *spec.VolumeCapability
	size int64
	gens int // confirmed by fsync

	snap       string // id of its snapshot
	has, hasNo int    // generations that it has at least, the first that it has not
}

const generation = 16 << 10 // bytes

// content is what a volume holds of a generation.
func (v *stormVolume) content(gen int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%-16.16s%016d", v.name, gen)), generation/32)
}

// any is the controller of some node.
func (v *stormVolume) any() spec.ControllerClient {
	return v.s.nodes[stormNodes[v.rng.IntN(len(stormNodes))]]
}

// repeated notes why something is done again.
func (s *storm) repeated(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again[why]++
}

// call repeats f until it succeeds.
func (s *storm) call(ctx context.Context, kind, what string, f func(context.Context) error) error {
	began := time.Now()
	err := lab.Until(ctx, kind+" "+what, stormPatience, stormPause, func() (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, stormAttempt)
		defer cancel()
		err := f(ctx)
		if err != nil {
			s.repeated(kind + " " + status.Code(err).String())
		}
		return err == nil, err
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.figures[kind] == nil {
		s.figures[kind] = new(figure)
	}
	*s.figures[kind] = append(*s.figures[kind], time.Since(began))
	return err
}

// step notes that a step is done.
func (s *storm) step() {
	s.steps.Add(1)
	select {
	case s.more <- struct{}{}:
	default: // somebody has not seen the last one yet
	}
}

// create makes a volume. One that is made from a snapshot has no more replicas than that.
func (v *stormVolume) create(ctx context.Context, name string, from *spec.VolumeContentSource) (id string, err error) {
	replicas := "2"
	err = v.s.call(ctx, "create", name, func(ctx context.Context) error {
		r, err := v.any().CreateVolume(ctx, &spec.CreateVolumeRequest{
			Name: name, VolumeCapabilities: []*spec.VolumeCapability{v.as}, CapacityRange: &spec.CapacityRange{RequiredBytes: v.size},
			Parameters: map[string]string{"replicas": replicas}, VolumeContentSource: from,
		})
		if from != nil && status.Code(err) == codes.FailedPrecondition && strings.Contains(err.Error(), "held by 1 replicas") {
			replicas = "1"
		}
		id = r.GetVolume().GetVolumeId()
		return err
	})
	return id, err
}

func (v *stormVolume) delete(ctx context.Context, id string) error {
	return v.s.call(ctx, "delete", v.name, func(ctx context.Context) error {
		_, err := v.any().DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: id})
		return err
	})
}

// on shows volume id on node, calls f with the path, and takes it away. If f fails its device may have gone with its daemon: all of it is done again.
func (v *stormVolume) on(ctx context.Context, node, id string, f func(path string) error) error {
	o := v.s.nodes[node]
	staged, target := filepath.Join(o.dir, id), filepath.Join(o.dir, id+"-target")
	for failed, began := error(nil), time.Now(); ; {
		for _, step := range []struct {
			kind string
			f    func(context.Context) error
		}{
			{"publish", func(ctx context.Context) error {
				_, err := v.any().ControllerPublishVolume(ctx, &spec.ControllerPublishVolumeRequest{VolumeId: id, NodeId: node, VolumeCapability: v.as})
				return err
			}},
			{"attach", func(ctx context.Context) error { // a kubelet whose second call fails because the device is gone begins anew
				if _, err := o.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staged, VolumeCapability: v.as}); err != nil {
					return err
				}
				_, err := o.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: staged, TargetPath: target, VolumeCapability: v.as})
				return err
			}},
			{"use", func(context.Context) error {
				failed = v.held(id, target, f)
				return nil
			}},
			{"hide", func(ctx context.Context) error {
				_, err := o.NodeUnpublishVolume(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
				return err
			}},
			{"detach", func(ctx context.Context) error {
				_, err := o.NodeUnstageVolume(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staged})
				return err
			}},
			{"unpublish", func(ctx context.Context) error {
				_, err := v.any().ControllerUnpublishVolume(ctx, &spec.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: node})
				return err
			}},
		} {
			if err := v.s.call(ctx, step.kind, fmt.Sprintf("%s (%s) on %s", v.name, id, node), step.f); err != nil {
				return errors.Join(err, failed)
			}
		}
		if failed == nil || errors.Is(failed, errLost) || ctx.Err() != nil || time.Since(began) > 2*stormPatience {
			return failed
		}
		v.s.repeated("use")
	}
}

// held calls f with the path while a raw device is held open, as a kubelet does: it stays what it is then, whatever becomes of the daemon behind it, and no other
// program of this machine gets its loop device.
func (v *stormVolume) held(id, path string, f func(path string) error) error {
	if v.as.GetBlock() == nil {
		return f(path)
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // nothing was written through it
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return err
	}
	behind, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/loop/backing_file", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err == nil && !strings.Contains(string(behind), "/"+id+".") {
		err = fmt.Errorf("the device of %s went before it was opened, there is %q", v.name, behind)
	}
	if err != nil {
		return err
	}
	return f(path)
}

// errLost means that what was confirmed is not there, or something that is not to be there.
var errLost = errors.New("lost")

// open opens what holds a generation, and returns where in it.
func (v *stormVolume) open(path string, gen, flags int) (*os.File, int64, error) {
	if v.as.GetBlock() != nil {
		f, err := os.OpenFile(path, flags&^os.O_CREATE, 0)
		return f, int64(gen) * generation, err
	}
	f, err := os.OpenFile(filepath.Join(path, fmt.Sprintf("gen-%d", gen)), flags, 0o600)
	return f, 0, err
}

// holds reads gens generations. An error of the device is none of the data.
func (v *stormVolume) holds(path string, gens int) error {
	for gen := range gens {
		got, err := v.read(path, gen)
		if errors.Is(err, fs.ErrNotExist) && v.as.GetBlock() == nil {
			return fmt.Errorf("%w: %s has no generation %d of %d: %w", errLost, v.name, gen, gens, err)
		}
		if err != nil {
			return err
		}
		if !bytes.Equal(got, v.content(gen)) {
			return fmt.Errorf("%w: %s has another generation %d of %d: %d bytes, %.64q", errLost, v.name, gen, gens, len(got), got)
		}
	}
	return nil
}

func (v *stormVolume) read(path string, gen int) ([]byte, error) {
	f, off, err := v.open(path, gen, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	got := make([]byte, generation)
	n, err := f.ReadAt(got, off)
	_ = f.Close()                                         // it was read only
	if errors.Is(err, io.EOF) && v.as.GetBlock() == nil { // a file is as long as it is; a device is whole, or not there
		err = nil
	}
	return got[:n], err
}

// holdsNo wants the generations from gen on, of which some were written, not to be there.
func (v *stormVolume) holdsNo(path string, gen int) error {
	for ; gen < v.gens; gen++ {
		got, err := v.read(path, gen)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case len(bytes.Trim(got, "\x00")) > 0:
			return fmt.Errorf("%w: what was made from the snapshot of %s has generation %d, which was written later: %.64q", errLost, v.name, gen, got)
		}
	}
	return nil
}

// write adds a generation, which counts when it is stable.
func (v *stormVolume) write(path string) error {
	f, off, err := v.open(path, v.gens, os.O_CREATE|os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(v.content(v.gens), off)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil && v.as.GetBlock() == nil {
		err = syncDir(path)
	}
	if err == nil {
		v.gens++
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// takeSnapshot asks for the snapshot once.
func (v *stormVolume) takeSnapshot(ctx context.Context) error {
	if v.has == 0 {
		v.has = v.gens // a call of which no answer came may have taken it
		v.s.step()     // somebody may be killed at it
	}
	v.hasNo = v.gens + 1 // the one after the last may have been written, and not been confirmed
	r, err := v.any().CreateSnapshot(ctx, &spec.CreateSnapshotRequest{Name: "snap-" + v.name, SourceVolumeId: v.id})
	v.snap = r.GetSnapshot().GetSnapshotId()
	return err
}

// uses has the volume on a node, reads all that was confirmed and writes more; with snapshot it has one taken of what is there then, and writes more again.
func (v *stormVolume) uses(ctx context.Context, node string, snapshot bool) error {
	defer v.s.step()
	return v.on(ctx, node, v.id, func(path string) error {
		if err := v.holds(path, v.gens); err != nil {
			return err
		}
		for range 2 {
			if err := v.write(path); err != nil {
				return err
			}
		}
		if !snapshot {
			return nil
		}
		if v.snap == "" {
			ctx, cancel := context.WithTimeout(ctx, stormAttempt)
			defer cancel()
			if err := v.takeSnapshot(ctx); err != nil { // not repeated here: the device may be gone
				v.s.repeated("snapshot " + status.Code(err).String())
				return err
			}
		}
		for range 2 {
			if err := v.write(path); err != nil {
				return err
			}
		}
		return nil
	})
}

// lives is the life of a volume up to its last check: used on nodes of both domains, a snapshot while it is used or while it is not, sometimes a volume made from that.
func (v *stormVolume) lives(ctx context.Context) (err error) {
	if v.id, err = v.create(ctx, v.name, nil); err != nil {
		return err
	}
	v.s.step()
	first, snapAt := v.rng.IntN(4), v.rng.IntN(3)
	homes := []string{stormNodes[first], stormNodes[(first+2)%4]}
	for i, node := range homes {
		if err := v.uses(ctx, node, i == snapAt); err != nil {
			return err
		}
	}
	if v.snap == "" {
		if err := v.s.call(ctx, "snapshot", "of "+v.name, v.takeSnapshot); err != nil {
			return err
		}
	}
	v.s.step()
	if v.rng.IntN(4) == 0 {
		copied, err := v.create(ctx, "copy-"+v.name, &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Snapshot{
			Snapshot: &spec.VolumeContentSource_SnapshotSource{SnapshotId: v.snap},
		}})
		if err != nil {
			return err
		}
		v.s.step()
		if err := v.on(ctx, homes[0], copied, func(path string) error {
			if err := v.holds(path, v.has); err != nil {
				return err
			}
			return v.holdsNo(path, v.hasNo)
		}); err != nil {
			return err
		}
		if err := v.delete(ctx, copied); err != nil {
			return err
		}
	}
	if err := v.s.call(ctx, "delete snapshot", "of "+v.name, func(ctx context.Context) error {
		_, err := v.any().DeleteSnapshot(ctx, &spec.DeleteSnapshotRequest{SnapshotId: v.snap})
		return err
	}); err != nil {
		return err
	}
	v.s.step()
	if err := v.on(ctx, stormNodes[v.rng.IntN(4)], v.id, func(path string) error { return v.holds(path, v.gens) }); err != nil {
		return err
	}
	v.s.step()
	return nil
}

// kills kills daemons, each after so many steps as rng says, until ctx ends, and starts them again: one, one of each domain at once, or the leader of the kvdb.
func (s *storm) kills(ctx context.Context, t *testing.T, rng *rand.Rand, every int) (killed map[string]int) {
	killed = map[string]int{}
	for next := s.steps.Load(); ; {
		next += int64(every/2 + rng.IntN(every))
		var victims []string
		switch rng.IntN(5) {
		case 0:
			victims = []string{stormNodes[rng.IntN(2)], stormNodes[2+rng.IntN(2)]}
		case 1: // the leader of the kvdb
		default:
			victims = []string{stormNodes[rng.IntN(4)]}
		}
		for s.steps.Load() < next {
			select {
			case <-ctx.Done():
				return killed
			case <-s.more:
			}
		}
		if err := s.kill(t, victims, killed); err != nil {
			t.Error(err)
			return killed
		}
	}
}

// kill kills these nodes, or for none the leader of the kvdb, and starts them again.
func (s *storm) kill(t *testing.T, victims []string, killed map[string]int) error {
	if len(victims) == 0 {
		var site string
		if err := lab.Until(t.Context(), "somebody leads the kvdb", 2*time.Minute, 100*time.Millisecond, func() (_ bool, err error) {
			site, err = s.c.KVDBLeader(t.Context())
			return err == nil, err
		}); err != nil {
			return err
		}
		p, err := s.c.KVDB(site)
		if err != nil {
			return err
		}
		if err := p.Kill(); err != nil {
			return err
		}
		killed["leader of the kvdb"]++
		return s.c.Start(site)
	}
	for _, n := range victims {
		if err := s.c.Node(n).Kill(); err != nil {
			return err
		}
		killed[s.c.Node(n).Site]++
	}
	for _, n := range victims {
		if err := s.c.StartNode(s.c.Node(n)); err != nil {
			return err
		}
	}
	began := time.Now()
	for _, n := range victims {
		if err := lab.Until(t.Context(), n+" answers", 2*time.Minute, 100*time.Millisecond, func() (bool, error) {
			state, pools, err := s.c.registered(t, n, n)
			return state == "NODE_STATE_ONLINE" && pools > 0, err
		}); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.figures["restart"] == nil {
		s.figures["restart"] = new(figure)
	}
	*s.figures["restart"] = append(*s.figures["restart"], time.Since(began))
	return nil
}

// volumes are as many as are asked for: raw devices, ext4 and XFS.
func (s *storm) volumes(seed uint64, count int) (vs []*stormVolume) {
	for i := range count {
		v := &stormVolume{s: s, rng: rand.New(rand.NewPCG(seed, uint64(i))), name: fmt.Sprintf("storm-%03d", i), as: rawBlock, size: 16 << 20}
		switch {
		case i%16 == 7:
			v.as, v.size = onXFS, 320<<20
		case i%2 == 1:
			v.as, v.size = onExt4, 64<<20
		}
		vs = append(vs, v)
	}
	return vs
}

// TestStorm creates, publishes, stages, writes, moves, snapshots, copies and deletes many volumes at once through the drivers of four nodes, while these
// are killed and started again. At the end what was confirmed is there, on every replica, and nothing else. -volumes says how many.
func TestStorm(t *testing.T) {
	needDisks(t, "mkfs.xfs")
	need(t, "mkfs.ext4")
	seed := testseed.Of(t)
	sockets := map[string]string{}
	c := own(t, func(s *lab.Spec) {
		serveCSI(sockets)(s)
		s.KVDB = "etcd"
	}, func(u *lab.Undo, c *cluster) { disksOf(t, u, c, 4<<30, "mkfs.xfs", "-q", "-K") })
	s := &storm{c: c, nodes: map[string]*orchestrator{}, more: make(chan struct{}, 1), figures: map[string]*figure{}, again: map[string]int{}}
	for _, n := range stormNodes {
		s.nodes[n] = orchestrate(t, sockets[n], filepath.Join(c.dir, "stage-"+n))
	}
	before := c.traces(t)

	began, vols := time.Now(), s.volumes(seed, *volumesFlag)
	ctx, end := context.WithCancel(t.Context())
	killed := make(chan map[string]int, 1)
	go func() {
		killed <- s.kills(ctx, t, rand.New(rand.NewPCG(seed, 1<<32)), max(8, *volumesFlag/4))
	}()
	g, gctx := errgroup.WithContext(ctx)
	for i, v := range vols {
		g.Go(func() error {
			err := v.lives(gctx)
			if err == nil && i%4 != 0 { // the others live on
				err = v.delete(gctx, v.id)
			}
			return err
		})
	}
	err := g.Wait()
	end()
	n := <-killed
	s.report(t, len(vols), n, time.Since(began))
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{alpha, beta, "leader of the kvdb"} {
		if n[who] == 0 && len(vols) >= 16 {
			t.Errorf("nobody was killed of %s: this proves nothing", who)
		}
	}

	for _, n := range stormNodes {
		c.online(t, n)
	}
	g, gctx = errgroup.WithContext(t.Context())
	g.SetLimit(10)
	for i, v := range vols {
		if i%4 == 0 {
			g.Go(func() error { return v.ends(gctx) })
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, n := range stormNodes {
		vs, err := s.nodes[n].ListVolumes(t.Context(), &spec.ListVolumesRequest{})
		ss, serr := s.nodes[n].ListSnapshots(t.Context(), &spec.ListSnapshotsRequest{})
		if err != nil || serr != nil || len(vs.GetEntries())+len(ss.GetEntries()) > 0 {
			t.Errorf("%s has %v %v (%v, %v)", n, vs, ss, err, serr)
		}
	}
	c.nothingLeft(t, before)
}

func (s *storm) report(t *testing.T, volumes int, killed map[string]int, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Logf("%d volumes in %v, killed %v, repeated %v", volumes, took.Round(time.Second), killed, s.again)
	for _, kind := range slices.Sorted(func(yield func(string) bool) {
		for k := range s.figures {
			if !yield(k) {
				return
			}
		}
	}) {
		t.Logf("%-16s %s (median, 95 %%, longest)", kind, *s.figures[kind])
	}
}

// ends is the end of a volume that outlived the kills: it has all that was confirmed, both replicas come to be in sync, and are identical.
func (v *stormVolume) ends(ctx context.Context) error {
	if err := v.on(ctx, stormNodes[v.rng.IntN(4)], v.id, func(path string) error {
		if err := v.holds(path, v.gens); err != nil {
			return err
		}
		return lab.Until(ctx, v.name+" in sync on both", 2*time.Minute, 200*time.Millisecond, func() (bool, error) {
			view, err := v.s.c.Inspect(ctx, v.s.c.Node("a1"), v.name)
			if err != nil {
				return false, err
			}
			for _, r := range view.Volume.Replicas {
				if !r.InSync {
					return false, fmt.Errorf("%+v", view.Volume.Replicas)
				}
			}
			return len(view.Volume.Replicas) == 2, nil
		})
	}); err != nil {
		return err
	}
	view, err := v.s.c.Inspect(ctx, v.s.c.Node("a1"), v.name)
	if err == nil {
		_, err = v.s.c.CompareReplicas(view)
	}
	if err != nil {
		return fmt.Errorf("replicas of %s: %w", v.name, err)
	}
	return v.delete(ctx, v.id)
}

package backing

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/internal/testseed"
)

// newSnapPool makes a pool on an XFS of its own that clones only when a write needs it.
// cut is Cut of all of r.
func (r *Replica) cut(id meta.UUID) error { return r.Cut(id, r.Info().Size) }

func newSnapPool(t testing.TB) *Pool {
	t.Helper()
	return openSnapPool(t, mountImage(t, "xfs", 512<<20))
}

func openSnapPool(t testing.TB, dir string) *Pool {
	t.Helper()
	p, err := OpenPool(Options{Path: dir, Cluster: testCluster, Node: "n1", ClonePause: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// must fails the test if err is not nil.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// snapID is the id of the n-th snapshot of a test.
func snapID(n int) meta.UUID { return meta.UUID{0x50, byte(n >> 8), byte(n)} }

// readSnapshot reads all of a snapshot.
func readSnapshot(r *Replica, id meta.UUID) (p []byte, err error) {
	d, err := r.OpenSnapshot(id)
	if err != nil {
		return nil, err
	}
	p = make([]byte, d.Info().Size)
	err = block.ReadAt(d, p, 0)
	return p, errors.Join(err, d.Close())
}

// sameData says where p is not what it has to be.
func sameData(p, want []byte) error {
	for at := 0; at < len(want); at += block.SectorSize {
		if !bytes.Equal(p[at:at+block.SectorSize], want[at:at+block.SectorSize]) {
			return fmt.Errorf("block at %d begins with %x, not %x", at, p[at:at+8], want[at:at+8])
		}
	}
	return nil
}

func checkSnapshot(t testing.TB, r *Replica, id meta.UUID, want []byte) {
	t.Helper()
	got, err := readSnapshot(r, id)
	if err == nil {
		err = sameData(got, want)
	}
	if err != nil {
		t.Fatalf("snapshot %x: %v", id, err)
	}
}

// TestSnapshot: a snapshot keeps what was there through every kind of change and a restart, and its own kind of
// file is there only for chunks that were changed.
func TestSnapshot(t *testing.T) {
	p := newSnapPool(t)
	createTestReplica(t, p, 5*testChunk)
	r := openTestReplica(t, p)
	first := make([]byte, 5*testChunk)
	copy(first, randomBytes(1, 3*testChunk))
	must(t, block.WriteAt(r, first[:3*testChunk], 0, 0))
	must(t, r.cut(snapID(1)))
	if err := r.cut(snapID(1)); !errors.Is(err, ErrExists) {
		t.Errorf("the same cut again: %v", err)
	}
	checkSnapshot(t, r, snapID(1), first)

	second := bytes.Clone(first)
	copy(second[testChunk-8192:], randomBytes(2, 16384))
	must(t, block.WriteAt(r, second[testChunk-8192:testChunk+8192], testChunk-8192, 0))
	clear(second[2*testChunk : 2*testChunk+4096])
	must(t, block.Discard(r, 2*testChunk, 4096))
	copy(second[4*testChunk:], randomBytes(3, 4096)) // a chunk that was not there at the cut
	must(t, block.WriteAt(r, second[4*testChunk:4*testChunk+4096], 4*testChunk, 0))
	must(t, block.Discard(r, 3*testChunk, testChunk)) // nor this one, and it is not now
	checkSnapshot(t, r, snapID(1), first)
	must(t, r.cut(snapID(2)))
	must(t, block.WriteZeroes(r, 0, 5*testChunk, block.NoHole))
	for range 2 {
		checkSnapshot(t, r, snapID(1), first)
		checkSnapshot(t, r, snapID(2), second)
		list := r.Snapshots()
		if len(list) != 2 || list[0].ID != snapID(1) || list[1].Number != 2 || list[0].Chunks != 4 || list[1].Chunks != 5 {
			t.Fatalf("snapshots %+v", list)
		}
		got := make([]byte, len(first))
		must(t, block.ReadAt(r, got, 0))
		must(t, sameData(got, make([]byte, len(first))))
		must(t, r.Close())
		r = openTestReplica(t, p)
	}

	d, err := r.OpenSnapshot(snapID(2))
	must(t, err)
	for _, op := range []block.Op{block.OpWrite, block.OpDiscard, block.OpWriteZeroes} {
		req := block.Request{Op: op, Len: 4096}
		if op == block.OpWrite {
			req.Data = make([]byte, 4096)
		}
		if err := block.Do(d, req); !errors.Is(err, block.ErrNotSupported) {
			t.Errorf("%v to a snapshot: %v", op, err)
		}
	}
	must(t, block.Flush(d))
	must(t, d.Close())
	must(t, d.Close())
	if err := block.ReadAt(d, make([]byte, 4096), 0); !errors.Is(err, block.ErrClosed) {
		t.Errorf("read of a closed snapshot: %v", err)
	}
	if _, err := r.OpenSnapshot(snapID(9)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a snapshot that is not there: %v", err)
	}
}

// TestSnapshotNeedsReflink: where files cannot be cloned the error says so, and nothing is changed.
func TestSnapshotNeedsReflink(t *testing.T) {
	p := openSnapPool(t, mountImage(t, "ext4", 64<<20))
	createTestReplica(t, p, testChunk)
	r := openTestReplica(t, p)
	if err := r.cut(snapID(1)); !errors.Is(err, ErrNoReflink) {
		t.Errorf("cut on ext4: %v", err)
	}
	if r.Superblock().Incompat != 0 || r.Snapshots() != nil {
		t.Error("the replica has snapshots all the same")
	}
}

// TestSnapshotRot: a damaged block of a snapshot is not returned, whether the chunk is a clone or still the head's.
func TestSnapshotRot(t *testing.T) {
	p := newSnapPool(t)
	createTestReplica(t, p, 2*testChunk)
	r := openTestReplica(t, p)
	must(t, activate(r.Log(), 0, 1))
	data := randomBytes(1, 2*testChunk)
	must(t, block.WriteAt(r, data, 0, 0))
	must(t, r.cut(snapID(1)))
	must(t, block.WriteAt(r, randomBytes(2, 8192), 0, 0))
	sn := r.snaps.view.Load().find(snapID(1))
	for n, path := range []string{filepath.Join(sn.dir, "0"), filepath.Join(r.dir, headDir, "1")} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt([]byte{data[n*testChunk] ^ 1}, 0)
		must(t, errors.Join(err, f.Sync(), f.Close()))
		d, err := r.OpenSnapshot(snapID(1))
		must(t, err)
		p := make([]byte, 8192)
		if err := block.ReadAt(d, p, int64(n)*testChunk); !errors.Is(err, block.ErrChecksum) {
			t.Errorf("%s: %v", path, err)
		}
		must(t, block.ReadAt(d, p, int64(n)*testChunk+8192))
		must(t, block.Do(d, block.Request{Op: block.OpRead, Flags: block.AsIs, Off: int64(n) * testChunk, Len: 8192, Data: p}))
		must(t, d.Close())
	}
}

// TestCutIsStable: what was written before a cut and never flushed is in the snapshot after a power cut, and so is the snapshot.
func TestCutIsStable(t *testing.T) {
	disks := mountImage(t, "xfs", 1<<30)
	img := filepath.Join(disks, "image")
	makeImage(t, img, "xfs", 320<<20)
	p := openSnapPool(t, mountFile(t, img, "xfs"))
	createTestReplica(t, p, testChunk)
	r := openTestReplica(t, p)
	data := make([]byte, testChunk)
	write := func(at int) {
		copy(data[at:], randomBytes(uint64(at), 8192))
		must(t, block.WriteAt(r, data[at:at+8192], int64(at), 0))
	}
	write(0)
	must(t, r.cut(snapID(1)))
	write(1 << 20)
	must(t, block.Flush(r))
	write(2 << 20) // to a chunk that was cloned before: nothing makes it stable but the cut
	must(t, r.cut(snapID(2)))
	run(t, "cp", "--reflink=always", img, img+"-cut")
	r = openTestReplica(t, openSnapPool(t, mountFile(t, img+"-cut", "xfs")))
	checkSnapshot(t, r, snapID(2), data)
}

// current is the replica as the process of the moment has it open.
type current struct{ *Replica }

// snapRig does things to a replica in random order, and knows what its snapshots have to be.
type snapRig struct {
	t     *testing.T
	rng   *rand.Rand
	size  int64
	img   string // image of the pool's file system
	p     *Pool
	at    *current
	model *blocktest.Model
	head  []byte // as of the last moment with nothing in flight
	snaps map[meta.UUID][]byte
	order []meta.UUID // of the cuts
	count int
	cuts  int
}

func (g *snapRig) block() int64 { return g.rng.Int64N(g.size/block.SectorSize) * block.SectorSize }

// request makes a change and notes it in head.
func (g *snapRig) request(wg *sync.WaitGroup) *block.Request {
	off := g.block()
	length := min(int64(1+g.rng.IntN(24))*block.SectorSize, g.size-off)
	req := &block.Request{Op: block.OpWrite, Off: off, Len: length}
	switch g.rng.IntN(8) {
	case 0:
		req.Op = block.OpDiscard
	case 1:
		req.Op = block.OpWriteZeroes
		if g.rng.IntN(2) == 0 {
			req.Flags = block.NoHole
		}
	default:
		req.Data = randomBytes(g.rng.Uint64(), int(length))
		copy(g.head[off:], req.Data)
	}
	if req.Data == nil {
		clear(g.head[off : off+length])
	}
	if g.rng.IntN(4) == 0 {
		req.Flags |= block.FUA
	}
	req.By = block.CompleterFunc(func(_ *block.Request, err error) {
		if err != nil {
			g.t.Error(err)
		}
		wg.Done()
	})
	return req
}

// change submits changes that do not overlap and calls during while they are in flight.
func (g *snapRig) change(during func()) {
	var wg sync.WaitGroup
	var batch []*block.Request
	for range 1 + g.rng.IntN(6) {
		req := g.request(&wg)
		for _, other := range batch {
			if req.Off < other.Off+other.Len && other.Off < req.Off+req.Len {
				g.model.Submit(batch)
				wg.Wait()
				batch = nil
				break
			}
		}
		wg.Add(1)
		batch = append(batch, req)
	}
	g.model.Submit(batch)
	if during != nil {
		during()
	}
	wg.Wait()
}

// step does one thing.
func (g *snapRig) step() {
	t, r := g.t, g.at.Replica
	switch k := g.rng.IntN(20); {
	case k < 9:
		g.change(nil)
	case k < 10:
		must(t, block.Flush(g.model))
	case k < 13:
		g.count++
		id := snapID(g.count)
		must(t, r.cut(id))
		g.snaps[id] = bytes.Clone(g.head)
		g.order = append(g.order, id)
	case k < 15:
		g.deleteOne()
	case k < 16: // the process ends, and the next one comes
		must(t, r.Close())
		g.at.Replica = openTestReplica(t, g.p)
	case k < 17:
		g.verify(g.at.Replica)
	default:
		g.powerCut()
	}
}

// deleteOne deletes a snapshot, with changes in flight.
func (g *snapRig) deleteOne() {
	if len(g.order) == 0 {
		return
	}
	i := g.rng.IntN(len(g.order))
	id := g.order[i]
	g.change(func() { must(g.t, g.at.DeleteSnapshot(id)) })
	delete(g.snaps, id)
	g.order = slices.Delete(g.order, i, i+1)
}

// verify checks every snapshot.
func (g *snapRig) verify(r *Replica) {
	g.t.Helper()
	list := r.Snapshots()
	if len(list) != len(g.order) {
		g.t.Fatalf("%d snapshots, want %d", len(list), len(g.order))
	}
	for i, id := range g.order {
		if list[i].ID != id {
			g.t.Fatalf("snapshot %d is %x, not %x", i, list[i].ID, id)
		}
		checkSnapshot(g.t, r, id, g.snaps[id])
	}
	if len(g.order) > 0 {
		g.checkChanges(r, meta.UUID{}, make([]byte, g.size))
		base := g.order[g.rng.IntN(len(g.order))]
		g.checkChanges(r, base, g.snaps[base])
	}
}

// checkChanges checks that every block in which a snapshot differs from base is told.
func (g *snapRig) checkChanges(r *Replica, base meta.UUID, was []byte) {
	g.t.Helper()
	id := g.order[g.rng.IntN(len(g.order))]
	now := bytes.Clone(was)
	must(g.t, r.ChangedBlocks(base, id, 0, func(off, length int64) bool {
		copy(now[off:off+length], g.snaps[id][off:])
		return true
	}))
	if err := sameData(now, g.snaps[id]); err != nil {
		g.t.Fatalf("snapshot %x made of %x and what has changed: %v", id, base, err)
	}
}

// powerCut looks at what a power cut would leave at this moment, with changes and perhaps a deletion in flight, and
// goes on with it a while.
func (g *snapRig) powerCut() {
	t := g.t
	victim := -1
	if len(g.order) > 0 && g.rng.IntN(2) == 0 {
		victim = g.rng.IntN(len(g.order))
	}
	g.cuts++
	clone := fmt.Sprint(g.img, "-", g.cuts)
	t.Run(fmt.Sprint("cut", g.cuts), func(t *testing.T) {
		defer os.Remove(clone)
		parent := g.t
		g.t = t
		defer func() { g.t = parent }()
		var d block.Device
		var err error
		g.change(func() {
			var deletion sync.WaitGroup
			defer deletion.Wait()
			if victim >= 0 {
				deletion.Go(func() {
					if err := g.at.DeleteSnapshot(g.order[victim]); err != nil {
						t.Error(err)
					}
				})
			}
			d, err = g.model.AfterCrash(func() block.Device {
				run(t, "cp", "--reflink=always", g.img, clone)
				return openTestReplica(t, openSnapPool(t, mountFile(t, clone, "xfs")))
			})
		})
		must(t, err)
		r := d.(*Replica)
		if victim >= 0 && g.at.snaps.view.Load().find(g.order[victim]) == nil {
			rest := slices.Delete(slices.Clone(g.order), victim, victim+1)
			if len(r.Snapshots()) == len(rest) {
				defer func(was []meta.UUID) { g.order = was }(g.order)
				g.order = rest
			}
		}
		g.verify(r)
		for range 4 {
			must(t, block.WriteAt(r, randomBytes(g.rng.Uint64(), block.SectorSize), g.block(), 0))
		}
		must(t, block.Discard(r, 0, g.size))
		g.verify(r)
	})
	if t.Failed() {
		t.FailNow()
	}
	if victim >= 0 {
		g.order = slices.Delete(g.order, victim, victim+1)
	}
}

// TestDeleteCutShort: a deletion that has come as far as that is ended by the next opening, and the snapshots before
// and after it stay as they are.
func TestDeleteCutShort(t *testing.T) {
	for stage := range 4 {
		p := openSnapPool(t, mountImage(t, "xfs", 320<<20))
		createTestReplica(t, p, 4*testChunk)
		r := openTestReplica(t, p)
		head := randomBytes(9, 4*testChunk)
		write := func(chunks ...int) {
			for _, c := range chunks {
				copy(head[c*testChunk:], randomBytes(uint64(c), 4096))
				must(t, block.WriteAt(r, head[c*testChunk:c*testChunk+4096], int64(c)*testChunk, 0))
			}
		}
		must(t, block.WriteAt(r, head, 0, 0))
		must(t, r.cut(snapID(1)))
		first := bytes.Clone(head)
		write(0)
		must(t, r.cut(snapID(2)))
		write(0, 1, 2) // the first one needs the clones of 1 and 2, which the second has
		must(t, r.cut(snapID(3)))
		third := bytes.Clone(head)
		write(0, 1, 2, 3)

		sn, older, err := r.snaps.beginDelete(snapID(2))
		must(t, err)
		switch stage {
		case 1:
			must(t, os.Rename(filepath.Join(sn.dir, "1"), filepath.Join(older.dir, "1")))
		case 2:
			must(t, r.snaps.hand(sn, older))
		case 3:
			must(t, r.snaps.hand(sn, older))
			must(t, r.snaps.endDelete(sn))
			must(t, os.Mkdir(sn.dir, 0o700)) // as if it had not got into the trash
		}
		must(t, r.Close())
		r = openTestReplica(t, p)
		checkSnapshot(t, r, snapID(1), first)
		checkSnapshot(t, r, snapID(3), third)
		if list := r.Snapshots(); len(list) != 2 {
			t.Errorf("stage %d: snapshots %+v", stage, list)
		}
		if _, err := os.Lstat(sn.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("stage %d: the directory is left: %v", stage, err)
		}
	}
}

// TestWritesBesideDelete: while the newest snapshot is being deleted, writes leave the one before it as it is.
func TestWritesBesideDelete(t *testing.T) {
	p := newSnapPool(t)
	createTestReplica(t, p, 3*testChunk)
	r := openTestReplica(t, p)
	first := randomBytes(1, 3*testChunk)
	must(t, block.WriteAt(r, first, 0, 0))
	write := func(chunks ...int64) {
		for _, c := range chunks {
			must(t, block.WriteAt(r, randomBytes(uint64(2+c), 8192), c*testChunk, 0))
		}
	}
	must(t, r.cut(snapID(1)))
	write(0)
	must(t, r.cut(snapID(2)))
	write(1)
	sn, older, err := r.snaps.beginDelete(snapID(2))
	must(t, err)
	write(0, 1, 2) // as the one before has it, as the one that is being deleted has it, as nobody has it
	must(t, r.snaps.hand(sn, older))
	write(0, 1, 2)
	must(t, r.cut(snapID(3)))
	third := readAll(t, r)
	must(t, r.snaps.endDelete(sn))
	must(t, block.WriteZeroes(r, 0, 3*testChunk, 0))
	checkSnapshot(t, r, snapID(1), first)
	checkSnapshot(t, r, snapID(3), third)
}

// TestReadKeepsChunk: while a snapshot's chunk is read from the head nobody clones it, so that no write passes.
func TestReadKeepsChunk(t *testing.T) {
	p := newSnapPool(t)
	createTestReplica(t, p, testChunk)
	r := openTestReplica(t, p)
	must(t, block.WriteAt(r, randomBytes(1, 4096), 0, 0))
	must(t, r.cut(snapID(1)))
	c, err := r.snaps.content(r.snaps.view.Load().target, 0)
	must(t, err)
	l := r.snaps.lockOf(0)
	if l.TryLock() {
		t.Error("the chunk could be cloned")
		l.Unlock()
	}
	c.release()
	if !l.TryLock() {
		t.Fatal("the chunk cannot be cloned any more")
	}
	l.Unlock()
}

// TestCloner: what no write waits for is cloned in the background, also after a restart, and a snapshot that is being read
// is not deleted.
func TestCloner(t *testing.T) {
	p := newSnapPool(t)
	createTestReplica(t, p, 6*testChunk)
	r := openTestReplica(t, p)
	data := randomBytes(1, 4*testChunk)
	must(t, block.WriteAt(r, data, 0, 0))
	must(t, r.cut(snapID(1)))
	d, err := r.OpenSnapshot(snapID(1))
	must(t, err)
	if err := r.DeleteSnapshot(snapID(1)); !errors.Is(err, ErrInUse) {
		t.Errorf("delete of an open snapshot: %v", err)
	}
	must(t, d.Close())
	p.o.ClonePause = time.Nanosecond
	must(t, r.Close())
	r = openTestReplica(t, p)
	for i := range 2 {
		r.snaps.cloner.Wait()
		if list := r.Snapshots(); list[i].Chunks != 4 {
			t.Errorf("after the cloner: %+v", list)
		}
		must(t, r.cut(snapID(2+i)))
	}
	checkSnapshot(t, r, snapID(2), append(data, make([]byte, 2*testChunk)...))
	if err := r.DeleteSnapshot(snapID(9)); !errors.Is(err, ErrNotFound) {
		t.Errorf("delete of one that is not there: %v", err)
	}
}

// TestSnapshotsThroughPowerCuts: changes, cuts, deletions, restarts and power cuts in any order leave every snapshot
// as it was taken.
func TestSnapshotsThroughPowerCuts(t *testing.T) {
	disks := mountImage(t, "xfs", 2<<30)
	for i := range 2 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(testseed.Of(t), 0))
			img := filepath.Join(disks, fmt.Sprint("image", i))
			makeImage(t, img, "xfs", 320<<20)
			chunk := int64(1+3*rng.IntN(2)) << 20 // smaller than a region of checksums, or as large
			g := &snapRig{t: t, rng: rng, size: 6 * chunk, img: img, snaps: make(map[meta.UUID][]byte)}
			g.p = openSnapPool(t, mountFile(t, img, "xfs"))
			must(t, g.p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: g.size, ChunkSize: chunk}))
			g.at = &current{openTestReplica(t, g.p)}
			g.model = blocktest.NewModel(g.at)
			g.head = make([]byte, g.size)
			for range 45 {
				g.step()
			}
			g.verify(g.at.Replica)
			must(t, g.model.Err())
		})
	}
}

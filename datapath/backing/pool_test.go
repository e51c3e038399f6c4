package backing

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pkg/xattr"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend/fuseloop"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// TestRemoveOnFailingDisk: a replica whose removal could not be made stable is not said to be gone.
func TestRemoveOnFailingDisk(t *testing.T) {
	if err := fuseloop.Available(); err != nil {
		t.Skip(err)
	}
	front, err := fuseloop.New(fuseloop.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := front.Close(); err != nil {
			t.Error(err)
		}
	})
	d := blocktest.NewInject(blocktest.NewMem(blocktest.MemOptions{Size: 256 << 20}))
	open := func(dir string) *Pool {
		p, err := OpenPool(Options{Path: dir, Cluster: testCluster, Node: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	onDisk(t, front, d, "ext4", true, func(dir string) {
		p := open(dir)
		createTestReplica(t, p, 8<<20)
		d.Add(blocktest.Rule{Op: block.OpWrite, Err: block.ErrIO})
		for range 3 {
			if err := p.Remove(testVolume, testReplica); !errors.Is(err, unix.EIO) {
				t.Errorf("remove on a disk that fails: %v", err)
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		d.Clear()
	})
	onDisk(t, front, d, "ext4", false, func(dir string) {
		p := open(dir)
		if err := p.Remove(testVolume, testReplica); err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("the disk is back: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestCreateListRemove(t *testing.T) {
	p := openTestPool(t, t.TempDir(), EngineAuto)
	createTestReplica(t, p, 8<<20)
	err := p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: 8 << 20})
	if !errors.Is(err, ErrExists) {
		t.Errorf("second create: %v", err)
	}
	stray := p.path(replicasDir, "stray")
	if err := os.Mkdir(stray, 0o700); err != nil {
		t.Fatal(err)
	}
	list, err := p.List()
	if err != nil || len(list) != 2 {
		t.Fatalf("list %+v, %v", list, err)
	}
	if e := list[0]; e.Err != nil || e.Volume != testVolume || e.Replica != testReplica || e.Superblock.Size != 8<<20 || e.Superblock.State != meta.StateEmpty {
		t.Errorf("entry %+v", e)
	}
	if e := list[1]; !errors.Is(e.Err, ErrIdentityMissing) {
		t.Errorf("stray entry %+v", e)
	}
	if c, err := p.Capacity(); err != nil || c.Provisioned != 8<<20 {
		t.Errorf("capacity %+v, %v", c, err)
	}
	if err := p.Remove(testVolume, testReplica); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(testVolume, testReplica); !errors.Is(err, ErrNotFound) {
		t.Errorf("second remove: %v", err)
	}
	if _, err := p.Open(testVolume, testReplica); !errors.Is(err, ErrNotFound) {
		t.Errorf("open of a removed replica: %v", err)
	}
	if c, err := p.Capacity(); err != nil || c.Provisioned != 0 {
		t.Errorf("capacity %+v, %v", c, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(p.path(trashDir)); err != nil || len(left) != 0 {
		t.Errorf("left in the trash: %v, %v", left, err)
	}
}

// TestListKnown: what is open here is named without being read, as long as it is there; the rest is read as by List.
func TestListKnown(t *testing.T) {
	p, r := newTestReplica(t, 8<<20, EngineAuto)
	if err := os.Mkdir(p.path(replicasDir, "stray"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := xattr.FRemove(r.d, xattrSuperblock); err != nil { // nobody may find that out
		t.Fatal(err)
	}
	list, err := p.ListKnown()
	if err != nil || len(list) != 2 {
		t.Fatalf("list %+v, %v", list, err)
	}
	if e := list[0]; e.Err != nil || e.Superblock != nil || e.Volume != testVolume || e.Replica != testReplica {
		t.Errorf("entry of what is open %+v", e)
	}
	if e := list[1]; !errors.Is(e.Err, ErrIdentityMissing) {
		t.Errorf("stray entry %+v", e)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if list, err = p.ListKnown(); err != nil || len(list) != 2 || !errors.Is(list[0].Err, ErrIdentityMissing) {
		t.Errorf("after it was closed %+v, %v", list, err)
	}
}

func TestBadSpecs(t *testing.T) {
	p := openTestPool(t, t.TempDir(), EngineAuto)
	c, err := p.Capacity()
	if err != nil {
		t.Fatal(err)
	}
	good := ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: 1 << 20}
	for _, bad := range []struct {
		name   string
		change func(s *ReplicaSpec)
		want   error
	}{
		{"size 0", func(s *ReplicaSpec) { s.Size = 0 }, ErrInvalid},
		{"negative size", func(s *ReplicaSpec) { s.Size = -4096 }, ErrInvalid},
		{"odd size", func(s *ReplicaSpec) { s.Size = 4097 }, ErrInvalid},
		{"size above the pool", func(s *ReplicaSpec) { s.Size = c.Total &^ 4095 * 2 }, ErrPoolFull},
		{"thick above what is free", func(s *ReplicaSpec) { s.Size, s.Thick = c.Total&^4095, true }, ErrPoolFull},
		{"no volume", func(s *ReplicaSpec) { s.Volume = meta.UUID{} }, ErrInvalid},
		{"other cluster", func(s *ReplicaSpec) { s.Cluster = meta.UUID{8} }, ErrForeign},
		{"odd chunk size", func(s *ReplicaSpec) { s.ChunkSize = 3 << 20 }, ErrInvalid},
		{"small chunk size", func(s *ReplicaSpec) { s.ChunkSize = 4096 }, ErrInvalid},
		{"negative chunk size", func(s *ReplicaSpec) { s.ChunkSize = -1 << 63 }, ErrInvalid},
	} {
		s := good
		bad.change(&s)
		if err := p.Create(s); !errors.Is(err, bad.want) {
			t.Errorf("%s: got %v, want %v", bad.name, err, bad.want)
		}
	}
	if list, err := p.List(); err != nil || len(list) != 0 {
		t.Errorf("refused and yet made: %+v, %v", list, err)
	}
}

func TestCapacityLevels(t *testing.T) {
	for _, c := range []struct {
		used, reserve int64
		want          Level
	}{
		{0, 0, LevelOK}, {800, 0, LevelOK}, {801, 0, LevelWarn}, {850, 0, LevelWarn}, {851, 0, LevelNoThin},
		{970, 0, LevelNoThin}, {971, 0, LevelEvict}, {1000, 0, LevelEvict}, {700, 200, LevelNoThin}, {900, 500, LevelEvict},
	} {
		if got := capacity(1000, 1000-c.used, c.reserve, 0).Level; got != c.want {
			t.Errorf("%d used of 1000, %d reserved: %v, want %v", c.used, c.reserve, got, c.want)
		}
	}
}

// A pool is crowded from 97 % on, and until it is below 90 % again.
func TestCrowded(t *testing.T) {
	is := false
	for _, c := range []struct {
		used int64
		want bool
	}{{900, false}, {970, false}, {971, true}, {970, true}, {900, true}, {899, false}, {950, false}, {1000, true}} {
		if is = capacity(1000, 1000-c.used, 0, 0).crowded(is); is != c.want {
			t.Errorf("%d used of 1000: crowded %v", c.used, is)
		}
	}
}

func TestThick(t *testing.T) {
	p := openTestPool(t, t.TempDir(), EngineAuto)
	size := int64(2 * testChunk)
	err := p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: size, ChunkSize: testChunk, Thick: true})
	if err != nil {
		t.Fatal(err)
	}
	r := openTestReplica(t, p)
	for range 2 { // allocated from the start, and still after a discard
		for n := range r.shape.Load().chunks {
			st, err := r.chunk(n).f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if got := allocated(t, st); got < testChunk {
				t.Errorf("chunk %d has %d bytes allocated", n, got)
			}
		}
		if err := block.WriteAt(r, randomBytes(1, 8192), testChunk-4096, 0); err != nil {
			t.Fatal(err)
		}
		if err := block.Discard(r, 0, size); err != nil {
			t.Fatal(err)
		}
	}
	b := randomBytes(1, 8192)
	if err := block.ReadAt(r, b, testChunk-4096); err != nil || string(b) != string(make([]byte, 8192)) {
		t.Errorf("discarded data are not zero (%v)", err)
	}
}

// TestHalfMade: what a crash during Create or Remove leaves is gone after OpenPool.
func TestHalfMade(t *testing.T) {
	dir, replica := stopped(t)
	run(t, "cp", "-a", replica, dir+"/tmp/half")
	run(t, "mv", replica, dir+"/trash/half")
	p := openTestPool(t, dir, EngineThreads)
	for _, d := range []string{tmpDir, trashDir, replicasDir} {
		if left, err := os.ReadDir(p.path(d)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", d, left, err)
		}
	}
}

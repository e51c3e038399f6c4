package backing

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// stopped makes a replica with data in its first two chunks, and closes it and its pool.
func stopped(t *testing.T) (pool, replica string) {
	t.Helper()
	dir := t.TempDir()
	p, err := OpenPool(testOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	createTestReplica(t, p, 4*testChunk)
	r, err := p.Open(testVolume, testReplica)
	if err != nil {
		t.Fatal(err)
	}
	for n := range int64(2) {
		if err := block.WriteAt(r, randomBytes(uint64(n), 4096), n*testChunk, 0); err != nil {
			t.Fatal(err)
		}
	}
	sb := r.Superblock()
	sb.Term, sb.Epoch, sb.State = 5, 6, meta.StateInSync
	if err := r.WriteSuperblock(sb); err != nil {
		t.Fatal(err)
	}
	if err := r.CloseClean(); err != nil {
		t.Fatal(err)
	}
	return dir, r.dir
}

func testOptions(dir string) Options { return Options{Path: dir, Cluster: testCluster, Node: "n1"} }

func TestReplicaRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   error
	}{
		{"swapped chunks", func(t *testing.T, dir string) {
			a, b := filepath.Join(dir, "head/0"), filepath.Join(dir, "head/1")
			run(t, "mv", a, b+".x")
			run(t, "mv", b, a)
			run(t, "mv", b+".x", b)
		}, ErrMisplaced},
		{"copied chunk", func(t *testing.T, dir string) {
			run(t, "cp", "-a", dir+"/head/0", dir+"/x")
			run(t, "mv", dir+"/x", dir+"/head/0")
		}, ErrMisplaced},
		{"chunk of another name", func(t *testing.T, dir string) { run(t, "mv", dir+"/head/1", dir+"/head/01") }, ErrMisplaced},
		{"chunk beyond the end", func(t *testing.T, dir string) { run(t, "mv", dir+"/head/1", dir+"/head/4") }, ErrMisplaced},
		{"lost chunk", func(t *testing.T, dir string) { run(t, "rm", dir+"/head/1") }, ErrMisplaced},
		{"cut chunk", func(t *testing.T, dir string) { run(t, "truncate", "-s", "4096", dir+"/head/1") }, ErrMisplaced},
		{"chunk without attribute", func(t *testing.T, dir string) { removeAttr(t, dir+"/head/1", xattrChunk) }, ErrMisplaced},
		{"lost chunk map", func(t *testing.T, dir string) { run(t, "rm", dir+"/chunks") }, ErrIdentityMissing},
		{"lost head", func(t *testing.T, dir string) { run(t, "mv", dir+"/head", dir+"/tail") }, os.ErrNotExist},
		{"something else in the log's place", func(t *testing.T, dir string) { run(t, "rm", dir+"/al"); run(t, "mkdir", "-p", dir+"/al/x") }, unix.ENOTEMPTY},
		{"lost superblock", func(t *testing.T, dir string) { run(t, "rm", dir+"/sb") }, ErrIdentityMissing},
		{"both slots damaged", func(t *testing.T, dir string) { garbage(t, dir+"/sb", 0); garbage(t, dir+"/sb", 1) }, meta.ErrCorrupt},
		{"no identity at all", func(t *testing.T, dir string) {
			run(t, "rm", dir+"/sb")
			removeAttr(t, dir, xattrSuperblock)
		}, ErrIdentityMissing},
		{"copied directory", func(t *testing.T, dir string) {
			run(t, "cp", "-a", dir, dir+".copy")
			run(t, "rm", "-r", dir)
			run(t, "mv", dir+".copy", dir)
		}, ErrForeign},
		{"directory of another replica", func(t *testing.T, dir string) {
			k := key{testVolume, testPeer}
			run(t, "mv", dir, filepath.Join(filepath.Dir(dir), k.dirName()))
			run(t, "cp", "-a", filepath.Join(filepath.Dir(dir), k.dirName()), dir)
		}, ErrForeign},
	} {
		t.Run(c.name, func(t *testing.T) {
			pool, dir := stopped(t)
			c.damage(t, dir)
			p := openTestPool(t, pool, EngineThreads)
			before := snapshot(t, dir)
			r, err := p.Open(testVolume, testReplica)
			if err == nil {
				r.Close()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("refused and yet changed:\n%s\nnow\n%s", before, after)
			}
		})
	}
}

// snapshot describes everything in dir but the times of reading.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	out := ""
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		out += path + "\n"
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			out += string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func removeAttr(t *testing.T, path, name string) {
	t.Helper()
	if err := xattr.Remove(path, name); err != nil {
		t.Fatal(err)
	}
}

// garbage overwrites one page of a file.
func garbage(t *testing.T, path string, page int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(randomBytes(99, meta.PageSize), page*meta.PageSize); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestPromiseSurvivesDamage: whichever slot is damaged, no promise is forgotten.
func TestPromiseSurvivesDamage(t *testing.T) {
	for slot := range int64(2) {
		pool, dir := stopped(t)
		garbage(t, dir+"/sb", slot)
		p := openTestPool(t, pool, EngineThreads)
		r := openTestReplica(t, p)
		if sb := r.Superblock(); sb.Term != 5 || sb.Epoch != 6 || sb.State != meta.StateInSync || sb.Unclean {
			t.Errorf("slot %d damaged: %+v", slot, sb)
		}
	}
}

// TestSuperblockRolledBack: an older superblock put back is noticed.
func TestSuperblockRolledBack(t *testing.T) {
	pool, dir := stopped(t)
	old, err := os.ReadFile(dir + "/sb")
	if err != nil {
		t.Fatal(err)
	}
	p := openTestPool(t, pool, EngineThreads)
	if err := openTestReplica(t, p).CloseClean(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/sb", old, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(testVolume, testReplica); !errors.Is(err, ErrForeign) {
		t.Errorf("opened with an older superblock: %v", err)
	}
}

func TestPoolRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, o *Options)
		want   error
	}{
		{"other node", func(_ *testing.T, o *Options) { o.Node = "n2" }, ErrForeign},
		{"other cluster", func(_ *testing.T, o *Options) { o.Cluster = meta.UUID{77} }, ErrForeign},
		{"copy", func(t *testing.T, o *Options) {
			run(t, "cp", "-a", o.Path, o.Path+".copy")
			t.Cleanup(func() { os.RemoveAll(o.Path + ".copy") })
			o.Path += ".copy"
		}, ErrForeign},
		{"lost identity", func(t *testing.T, o *Options) { run(t, "rm", o.Path+"/pool.json") }, ErrIdentityMissing},
		{"damaged identity", func(t *testing.T, o *Options) { garbage(t, o.Path+"/pool.json", 0) }, ErrIdentityMissing},
		{"short identity", func(t *testing.T, o *Options) { run(t, "truncate", "-s", "0", o.Path+"/pool.json") }, ErrIdentityMissing},
		{"directory of other things", func(t *testing.T, o *Options) {
			o.Path = t.TempDir()
			run(t, "touch", o.Path+"/thesis.tex")
		}, ErrIdentityMissing},
		{"other file system", func(_ *testing.T, o *Options) { o.Path = "/proc" }, ErrUnsafeFS},
		{"absent", func(_ *testing.T, o *Options) { o.Path += "/none" }, os.ErrNotExist},
		{"no node", func(_ *testing.T, o *Options) { o.Node = "" }, ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _ := stopped(t)
			o := testOptions(dir)
			c.change(t, &o)
			p, err := OpenPool(o)
			if err == nil {
				p.Close()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestLocked(t *testing.T) {
	p, r := newTestReplica(t, 1<<20, EngineAuto)
	o := testOptions(p.Path())
	o.LockWait = -1
	if _, err := OpenPool(o); !errors.Is(err, ErrLocked) {
		t.Errorf("second open of a pool: %v", err)
	}
	if _, err := p.Open(testVolume, testReplica); !errors.Is(err, ErrInUse) {
		t.Errorf("second open of a replica: %v", err)
	}
	if err := p.Remove(testVolume, testReplica); !errors.Is(err, ErrInUse) {
		t.Errorf("remove of an open replica: %v", err)
	}
	if err := p.Close(); !errors.Is(err, ErrInUse) {
		t.Errorf("close of a pool in use: %v", err)
	}
	f, err := lockExclusive(filepath.Join(r.dir, lockFile), -1)
	if !errors.Is(err, ErrLocked) {
		t.Errorf("lock of an open replica: %v", err)
	}
	unlock(f, nil)
}

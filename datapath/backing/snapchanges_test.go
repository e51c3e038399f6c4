package backing

import (
	"errors"
	"reflect"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

func changes(t *testing.T, r *Replica, base, id meta.UUID, off int64) (list [][2]int64) {
	t.Helper()
	must(t, r.ChangedBlocks(base, id, off, func(off, length int64) bool {
		if i := len(list) - 1; i >= 0 && list[i][0]+list[i][1] == off {
			list[i][1] += length
		} else {
			list = append(list, [2]int64{off, length})
		}
		return true
	}))
	return list
}

// TestChangedBlocks: exactly the blocks that were written between two cuts have changed, also after the background cloner, a
// restart, and the deletion of what was between them.
func TestChangedBlocks(t *testing.T) {
	const k = 1 << 10
	p := newSnapPool(t)
	createTestReplica(t, p, 5*testChunk)
	r := openTestReplica(t, p)
	write := func(off, length int64) {
		must(t, block.WriteAt(r, randomBytes(uint64(off), int(length)), off, 0))
	}
	write(64*k, 128*k)
	write(testChunk, testChunk)
	must(t, r.cut(snapID(1)))
	write(68*k, 8*k)
	write(2*testChunk-4*k, 8*k) // the last block of a chunk, and the first of one that was not there
	must(t, r.cut(snapID(2)))
	must(t, block.Discard(r, testChunk, 16*k))
	must(t, r.cut(snapID(3)))
	write(0, 4*k)
	for round := range 3 {
		switch round {
		case 1:
			p.o.ClonePause = 1
			r.snaps.startCloner()
			r.snaps.cloner.Wait()
			must(t, r.Close())
			r = openTestReplica(t, p)
		case 2:
			must(t, r.DeleteSnapshot(snapID(2)))
		}
		none := meta.UUID{}
		want := map[[2]meta.UUID][][2]int64{
			{none, snapID(1)}:      {{64 * k, 128 * k}, {testChunk, testChunk}},
			{snapID(1), snapID(1)}: nil,
			{snapID(1), snapID(3)}: {{68 * k, 8 * k}, {testChunk, 16 * k}, {2*testChunk - 4*k, 8 * k}},
			{snapID(3), snapID(1)}: {{68 * k, 8 * k}, {testChunk, 16 * k}, {2*testChunk - 4*k, 8 * k}},
			{none, snapID(3)}:      {{64 * k, 128 * k}, {testChunk + 16*k, testChunk - 12*k}},
		}
		if round < 2 {
			want[[2]meta.UUID{snapID(1), snapID(2)}] = [][2]int64{{68 * k, 8 * k}, {2*testChunk - 4*k, 8 * k}}
			want[[2]meta.UUID{snapID(2), snapID(3)}] = [][2]int64{{testChunk, 16 * k}}
		}
		for c, w := range want {
			if got := changes(t, r, c[0], c[1], 0); !reflect.DeepEqual(got, w) {
				t.Errorf("round %d: from %x to %x: %v, want %v", round, c[0][:3], c[1][:3], got, w)
			}
		}
	}
	if got := changes(t, r, snapID(1), snapID(3), testChunk+4*k); !reflect.DeepEqual(got, [][2]int64{{testChunk + 4*k, 12 * k}, {2*testChunk - 4*k, 8 * k}}) {
		t.Errorf("from the middle: %v", got)
	}
	if err := r.ChangedBlocks(snapID(2), snapID(3), 0, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("with a base that is gone: %v", err)
	}
}

// TestSnapshotFrees: what deleting a snapshot gives back is what nobody shares.
func TestSnapshotFrees(t *testing.T) {
	p := newSnapPool(t)
	createTestReplica(t, p, 2*testChunk)
	r := openTestReplica(t, p)
	frees := func(n int) int64 {
		b, err := r.SnapshotFrees(snapID(n))
		must(t, err)
		return b
	}
	must(t, block.WriteAt(r, randomBytes(1, 2*testChunk), 0, 0))
	must(t, r.cut(snapID(1)))
	if b := frees(1); b != 0 {
		t.Errorf("a new snapshot frees %d bytes", b)
	}
	must(t, block.WriteAt(r, randomBytes(2, 64<<10), 0, 0))
	if b := frees(1); b != 64<<10+meta.PageSize {
		t.Errorf("the snapshot frees %d bytes, not what was overwritten and a page of checksums", b)
	}
	must(t, r.cut(snapID(2)))
	must(t, block.WriteAt(r, randomBytes(3, 128<<10), 64<<10, 0))
	if a, b := frees(1), frees(2); a != 64<<10+meta.PageSize || b != meta.PageSize {
		t.Errorf("the snapshots free %d and %d bytes", a, b) // what was overwritten since is in both
	}
	must(t, r.DeleteSnapshot(snapID(1)))
	p.removals.Wait()
	run(t, "fsfreeze", "-f", p.Path()) // the file system removes in the background, too
	run(t, "fsfreeze", "-u", p.Path())
	if b := frees(2); b != 128<<10+meta.PageSize {
		t.Errorf("the one that is left frees %d bytes", b)
	}
}

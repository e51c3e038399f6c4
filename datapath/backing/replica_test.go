package backing

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

var (
	testCluster = meta.UUID{1}
	testVolume  = meta.UUID{2}
	testReplica = meta.UUID{3}
	testPeer    = meta.UUID{4}
)

const testChunk = 4 << 20

func openTestPool(t testing.TB, dir string, e Engine) *Pool {
	t.Helper()
	p, err := OpenPool(Options{Path: dir, Cluster: testCluster, Node: "n1", Engine: e})
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

// newTestReplica makes and opens a replica of size bytes on a new pool.
func newTestReplica(t testing.TB, size int64, e Engine) (*Pool, *Replica) {
	t.Helper()
	p := openTestPool(t, t.TempDir(), e)
	createTestReplica(t, p, size)
	return p, openTestReplica(t, p)
}

func createTestReplica(t testing.TB, p *Pool, size int64) {
	t.Helper()
	err := p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: size, ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
}

func openTestReplica(t testing.TB, p *Pool) *Replica {
	t.Helper()
	r, err := p.Open(testVolume, testReplica)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func TestReopen(t *testing.T) {
	p, r := newTestReplica(t, 10<<20, EngineAuto)
	want := randomBytes(1, 3<<20)
	if err := block.WriteAt(r, want, 512<<10, 0); err != nil {
		t.Fatal(err)
	}
	if err := block.Flush(r); err != nil {
		t.Fatal(err)
	}
	if r.Unclean() || r.Lossy() {
		t.Error("a new replica is unclean or lossy")
	}
	if err := r.CloseClean(); err != nil {
		t.Fatal(err)
	}
	if err := block.Flush(r); !errors.Is(err, block.ErrClosed) {
		t.Errorf("flush after close: %v", err)
	}
	r = openTestReplica(t, p)
	if r.Unclean() {
		t.Error("unclean after CloseClean")
	}
	got := make([]byte, 10<<20)
	if err := block.ReadAt(r, got, 0); err != nil {
		t.Fatal(err)
	}
	full := make([]byte, 10<<20)
	copy(full[512<<10:], want)
	if !bytes.Equal(got, full) {
		t.Error("data differ after reopen")
	}
	r.Close()
	r = openTestReplica(t, p)
	if !r.Unclean() || r.Lossy() {
		t.Errorf("after Close: unclean %v, lossy %v", r.Unclean(), r.Lossy())
	}
}

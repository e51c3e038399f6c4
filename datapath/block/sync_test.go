package block

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/tandem-storage/tandem/datapath/invariant"
)

// ram is the simplest device: synchronous, without abilities to speak of.
type ram struct {
	mu   sync.Mutex
	data []byte
	log  []Request // copies, without Data
	fail error     // of the next request
}

func (d *ram) Info() Info   { return Info{Size: int64(len(d.data)), BlockSize: 4096, Caps: allCaps} }
func (d *ram) Close() error { return nil }

func (d *ram) Submit(batch []*Request) {
	for _, r := range batch {
		err := r.Check(d.Info())
		d.mu.Lock()
		if err == nil {
			err, d.fail = d.fail, nil
		}
		if err == nil {
			switch r.Op {
			case OpRead:
				copy(r.Data, d.data[r.Off:])
			case OpWrite:
				copy(d.data[r.Off:], r.Data)
			case OpWriteZeroes, OpDiscard:
				clear(d.data[r.Off : r.Off+r.Len])
			case OpFlush:
			}
		}
		d.log = append(d.log, Request{Op: r.Op, Flags: r.Flags, Off: r.Off, Len: r.Len})
		d.mu.Unlock()
		r.By.Complete(r, err)
	}
}

func TestSyncHelpers(t *testing.T) {
	d := &ram{data: make([]byte, 4*MaxIO)}
	in := bytes.Repeat([]byte("tandem42"), (2*MaxIO+8192)/8)
	if err := WriteAt(d, in, 4096, FUA); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, len(in))
	if err := ReadAt(d, out, 4096); err != nil || !bytes.Equal(in, out) {
		t.Fatalf("read back differs, err %v", err)
	}
	if err := WriteZeroes(d, 4096, 4096, NoHole); err != nil {
		t.Fatal(err)
	}
	if err := Discard(d, 8192, 4096); err != nil {
		t.Fatal(err)
	}
	if err := Flush(d); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.data[4096:12288], make([]byte, 8192)) || bytes.Equal(d.data[12288:16384], make([]byte, 4096)) {
		t.Fatal("zeroes in the wrong place")
	}
	want := []Request{
		{Op: OpWrite, Flags: FUA, Off: 4096, Len: MaxIO},
		{Op: OpWrite, Flags: FUA, Off: 4096 + MaxIO, Len: MaxIO},
		{Op: OpWrite, Flags: FUA, Off: 4096 + 2*MaxIO, Len: 8192},
		{Op: OpRead, Off: 4096, Len: MaxIO},
		{Op: OpRead, Off: 4096 + MaxIO, Len: MaxIO},
		{Op: OpRead, Off: 4096 + 2*MaxIO, Len: 8192},
		{Op: OpWriteZeroes, Flags: NoHole, Off: 4096, Len: 4096},
		{Op: OpDiscard, Off: 8192, Len: 4096},
		{Op: OpFlush},
	}
	if len(d.log) != len(want) {
		t.Fatalf("%d requests, want %d", len(d.log), len(want))
	}
	for i, w := range want {
		if g := d.log[i]; g.Op != w.Op || g.Flags != w.Flags || g.Off != w.Off || g.Len != w.Len {
			t.Errorf("request %d is %+v, want %+v", i, g, w)
		}
	}
}

func TestSyncHelpersStopAtTheFirstError(t *testing.T) {
	d := &ram{data: make([]byte, 4*MaxIO), fail: ErrNoSpace}
	if err := WriteAt(d, make([]byte, 2*MaxIO), 0, 0); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("got %v", err)
	}
	if len(d.log) != 1 {
		t.Fatalf("%d requests after a failed first piece", len(d.log))
	}
	if err := ReadAt(d, nil, 0); !errors.Is(err, ErrInvalid) {
		t.Fatalf("empty read: got %v", err)
	}
}

func TestDoAllocatesNothing(t *testing.T) {
	if invariant.Enabled {
		t.Skip("sync.Pool drops items at random under the race detector")
	}
	d := &ram{data: make([]byte, 4096)}
	p := make([]byte, 4096)
	if err := ReadAt(d, p, 0); err != nil {
		t.Fatal(err)
	}
	d.log = make([]Request, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { _ = ReadAt(d, p, 0) }); n != 0 {
		t.Fatalf("%v allocations per read", n)
	}
}

// later completes on another goroutine.
type later struct{ ram }

func (d *later) Submit(batch []*Request) {
	for _, r := range batch {
		go d.ram.Submit([]*Request{r})
	}
}

// Callers in different synctest bubbles share the pool of waiters.
func TestDoInBubbles(t *testing.T) {
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			d := &later{ram{data: make([]byte, MaxIO)}}
			for range 20 {
				if err := ReadAt(d, make([]byte, 4096), 0); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

package blocktest_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

func TestFilters(t *testing.T) {
	for name, filter := range map[string]func(block.Device) block.Device{
		"inject": func(d block.Device) block.Device { return blocktest.NewInject(d) },
		"delay":  func(d block.Device) block.Device { return blocktest.NewDelay(d) },
		"record": func(d block.Device) block.Device { return blocktest.NewRecord(d) },
		"model":  func(d block.Device) block.Device { return blocktest.NewModel(d) },
		"all": func(d block.Device) block.Device {
			return blocktest.NewRecord(blocktest.NewDelay(blocktest.NewModel(blocktest.NewInject(d))))
		},
	} {
		blocktest.Run(t, name, func(_ *testing.T, size int64) block.Device {
			return filter(blocktest.NewMem(blocktest.MemOptions{Size: size, Async: name == "all"}))
		})
	}
}

func writeErr(d block.Device, off int64, b byte) error {
	return block.WriteAt(d, bytes.Repeat([]byte{b}, block.SectorSize), off, 0)
}

func TestInject(t *testing.T) {
	m := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
	d := blocktest.NewInject(m)
	fired := d.Add(blocktest.Rule{Op: block.OpWrite, Off: 8192, Len: 4096, After: 1, Times: 2, Err: block.ErrNoSpace})
	for i, want := range []error{nil, block.ErrNoSpace, block.ErrNoSpace, nil} {
		if err := writeErr(d, 8192, byte(i+1)); !errors.Is(err, want) {
			t.Fatalf("write %d ended with %v, want %v", i, err, want)
		}
		if err := errors.Join(writeErr(d, 4096, 9), writeErr(d, 12288, 9), block.Flush(d), block.Discard(d, 8192, 4096)); err != nil {
			t.Fatalf("a request that no rule means failed: %v", err)
		}
	}
	if n := fired(); n != 2 {
		t.Fatalf("fired %d times, want 2", n)
	}

	d.Clear()
	d.Add(blocktest.Rule{Op: block.OpWrite, Err: block.ErrIO})
	if err := writeErr(d, 0, 5); !errors.Is(err, block.ErrIO) {
		t.Fatal(err)
	}
	if b := first(t, m, 0); b != 0 {
		t.Fatalf("a failed write was carried out: %d", b)
	}
	d.Clear()
	d.Add(blocktest.Rule{Op: block.OpWrite, Err: block.ErrIO, Apply: true})
	if err := writeErr(d, 0, 5); !errors.Is(err, block.ErrIO) {
		t.Fatal(err)
	}
	if b := first(t, m, 0); b != 5 {
		t.Fatalf("a write to be carried out and failed was not carried out: %d", b)
	}
	if err := writeErr(d, 1, 5); !errors.Is(err, block.ErrMisaligned) {
		t.Fatalf("a malformed request ended with %v", err)
	}
	d.Clear()
	d.Add(blocktest.Rule{Err: block.ErrIO})
	if err := block.Flush(d); !errors.Is(err, block.ErrIO) {
		t.Fatalf("a rule for everything let a flush pass: %v", err)
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
		d := blocktest.NewDelay(m)
		done := make(chan int, 3)
		submit := func(i int) {
			go func() {
				write(t, d, int64(i)*4096, byte(i), 0)
				done <- i
			}()
			d.WaitHeld(1)
			synctest.Wait()
		}

		d.Pause(blocktest.BeforeStart, func(r *block.Request) bool { return r.Op == block.OpWrite })
		for i := 1; i <= 3; i++ {
			submit(i)
		}
		if n := d.Held(); n != 3 {
			t.Fatalf("%d held, want 3", n)
		}
		if err := block.Flush(d); err != nil {
			t.Fatal(err) // not a write: passes
		}
		if b := first(t, m, 4096); b != 0 {
			t.Fatal("a write held before its start was carried out")
		}
		if n := d.Step(1); n != 1 || <-done != 1 {
			t.Fatal("a step did not let the oldest go")
		}
		d.Resume()
		if got := <-done + <-done; got != 5 || d.Held() != 0 {
			t.Fatalf("after Resume %d are held", d.Held())
		}

		d.Pause(blocktest.BeforeCompletion, nil)
		submit(1)
		if b := first(t, m, 4096); b != 1 {
			t.Fatal("a write held before its completion was not carried out")
		}
		select {
		case <-done:
			t.Fatal("a held write completed")
		default:
		}
		d.Resume()
		<-done
	})
}

func TestDelayClose(t *testing.T) {
	d := blocktest.NewDelay(blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20}))
	errs := make(chan error, 2)
	hold := func(p blocktest.Point) {
		d.Pause(p, nil)
		go func() { errs <- writeErr(d, 0, 1) }()
	}
	hold(blocktest.BeforeCompletion)
	d.WaitHeld(1)
	hold(blocktest.BeforeStart)
	d.WaitHeld(2)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	a, b := <-errs, <-errs
	if a != nil {
		a, b = b, a
	}
	if a != nil || !errors.Is(b, block.ErrClosed) {
		t.Fatalf("held requests ended with %v and %v, want nil and ErrClosed", a, b)
	}
	if err := writeErr(d, 0, 1); !errors.Is(err, block.ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
}

func TestRecord(t *testing.T) {
	d := blocktest.NewRecord(blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20}))
	write(t, d, 4096, 1, block.FUA)
	if err := errors.Join(block.Flush(d), block.WriteZeroes(d, 0, 8192, block.NoHole)); err != nil {
		t.Fatal(err)
	}
	if err := block.Discard(d, 0, 1<<21); !errors.Is(err, block.ErrOutOfRange) {
		t.Fatal(err)
	}
	const want = `1 write 4096+4096 fua
1 done: <nil>
2 flush
2 done: <nil>
3 write-zeroes 0+8192 no-hole
3 done: <nil>
4 discard 0+2097152
4 done: block: discard of 2097152 bytes at 0: block: beyond the end of the device
`
	if got := d.String(); got != want {
		t.Fatalf("history:\n%swant:\n%s", got, want)
	}
	if d.Completed(block.OpWrite) != 1 || d.Completed(block.OpDiscard) != 0 {
		t.Fatal("Completed counts wrong")
	}
	flushed := func(e blocktest.Event) bool { return e.Done && e.Op == block.OpFlush }
	if err := d.Wait(t.Context(), flushed); err != nil {
		t.Fatal(err)
	}
	d.Reset()
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error)
	go func() { waited <- d.Wait(ctx, flushed) }()
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// The Model accepts what the contract allows and nothing else.
func TestModel(t *testing.T) {
	m := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
	hold := blocktest.NewDelay(m)
	d := blocktest.NewModel(hold)
	write(t, d, 0, 1, 0)

	// A write in flight: old and new are both right.
	hold.Pause(blocktest.BeforeCompletion, func(r *block.Request) bool { return r.Op == block.OpWrite })
	done := make(chan error)
	go func() { done <- writeErr(d, 0, 2) }()
	hold.WaitHeld(1)
	if b := first(t, d, 0); b != 2 || d.Err() != nil {
		t.Fatalf("read %d, %v", b, d.Err())
	}
	hold.Resume()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	// A failed write leaves old or new.
	fail := blocktest.NewInject(m)
	f := blocktest.NewModel(fail)
	fail.Add(blocktest.Rule{Op: block.OpWrite, Err: block.ErrIO, Apply: true})
	if err := writeErr(f, 8192, 7); err == nil {
		t.Fatal("no error")
	}
	if b := first(t, f, 8192); b != 7 || f.Err() != nil {
		t.Fatalf("read %d, %v", b, f.Err())
	}

	// Somebody writes below it.
	write(t, m, 0, 9, 0)
	first(t, d, 0)
	if d.Err() == nil {
		t.Fatal("content from nowhere was accepted")
	}
}

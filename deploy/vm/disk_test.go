package vm

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/datapath/frontend/nbd"
)

// stand shows disks in tests.
func stand(t *testing.T) frontend.Frontend {
	t.Helper()
	s, err := nbd.Listen(nbd.Options{Endpoints: []nbd.Endpoint{{Network: "unix", Address: filepath.Join(t.TempDir(), "nbd.sock")}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newDisk(t *testing.T, server frontend.Frontend, name string, size int64) *Disk {
	t.Helper()
	d := NewDisk(server, name, size)
	if err := d.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDiskConformance(t *testing.T) {
	server := stand(t)
	n := 0
	blocktest.Run(t, "Disk", func(t *testing.T, size int64) block.Device {
		n++
		return dying{newDisk(t, server, fmt.Sprint("disk", n), size)}
	})
}

// dying is a disk whose Close is that of a device, power or not.
type dying struct{ *Disk }

func (d dying) Close() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.lines.inject.Close()
}

// TestCutTogether cuts the power of two disks under somebody who writes to one what he has made stable on the other: none is
// ever behind.
func TestCutTogether(t *testing.T) {
	server := stand(t)
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		first, second := newDisk(t, server, "first", 1<<20), newDisk(t, server, "second", 1<<20)
		p := make([]byte, block.SectorSize)
		cut, going := make(chan struct{}), make(chan struct{})
		go func() {
			<-going
			Cut(Loss{Kept: rng.IntN(101), Rand: rng}, first, second)
			close(cut)
		}()
		// Until the power is gone; then a request is never answered.
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for i := uint32(1); ; i++ {
				binary.LittleEndian.PutUint32(p, i)
				for _, d := range []*Disk{first, second} {
					if block.WriteAt(d, p, 0, 0) != nil || block.Flush(d) != nil {
						return
					}
				}
				if i == 5 {
					close(going)
				}
			}
		}()
		<-cut
		a, b := stable(t, first), stable(t, second)
		if a != b && a != b+1 {
			t.Errorf("seed %d: %d is on the first disk, %d on the second, which is written later", seed, a, b)
		}
		for _, d := range []*Disk{first, second} {
			if err := d.Bury(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		<-ended
	}
}

// stable reads the number on a dark disk.
func stable(t *testing.T, d *Disk) uint32 {
	t.Helper()
	p := make([]byte, block.SectorSize)
	if err := block.ReadAt(d.lines.mem, p, 0); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(p)
}

// TestDark wants nothing done and nothing answered without power, and what is left readable with power again.
func TestDark(t *testing.T) {
	d := newDisk(t, stand(t), "dark", 1<<20)
	p := make([]byte, block.SectorSize)
	p[0] = 1
	if err := block.WriteAt(d, p, 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	p[0] = 2
	if err := block.WriteAt(d, p, 0, 0); err != nil {
		t.Fatal(err)
	}
	Cut(Loss{}, d)
	answer := make(chan error, 1)
	go func() { answer <- block.WriteAt(d, p, 0, block.FUA) }()
	for d.swallowed() == 0 {
		select {
		case err := <-answer:
			t.Fatalf("answered without power: %v", err)
		case <-time.After(time.Millisecond): // no event tells of what is swallowed
		}
	}
	if err := d.Bury(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err == nil {
		t.Error("what was written without power succeeded")
	}
	if err := d.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := block.ReadAt(d, p, 0); err != nil || p[0] != 1 {
		t.Errorf("the disk holds %d, want 1, which was stable: %v", p[0], err)
	}
}

func (d *Disk) swallowed() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.lost)
}

func TestFaults(t *testing.T) {
	d := newDisk(t, stand(t), "faulty", 1<<20)
	p := make([]byte, block.SectorSize)
	cure := d.FailFlushes()
	if err := block.WriteAt(d, p, 0, 0); err != nil {
		t.Error(err)
	}
	if err := block.Flush(d); err == nil {
		t.Error("the flush succeeded")
	}
	if n := cure(); n != 1 {
		t.Errorf("%d flushes failed", n)
	}
	if err := block.Flush(d); err != nil {
		t.Error(err)
	}
	release := d.Hang()
	answer := make(chan error, 1)
	go func() { answer <- block.Flush(d) }()
	d.lines.hang.WaitHeld(1)
	select {
	case err := <-answer:
		t.Errorf("answered while it hangs: %v", err)
	default:
	}
	release()
	if err := <-answer; err != nil {
		t.Error(err)
	}
}

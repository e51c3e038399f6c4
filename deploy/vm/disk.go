package vm

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend"
)

// sector is what a disk's geometry is told in; loss and order are by block.SectorSize.
const sector = 512

// Disk is a disk with a volatile cache: a block.Device of zeroes at first. It
// outlives the machines that use it, one after the other. Safe for concurrent use.
type Disk struct {
	name   string
	server frontend.Frontend

	mu    sync.RWMutex // writing: the power goes
	dark  bool         // without power
	gone  bool         // and without a machine
	lost  []*block.Request
	lines struct {
		mem    *blocktest.Mem
		hang   *blocktest.Delay  // over mem
		inject *blocktest.Inject // over hang
	}
}

var _ block.Device = (*Disk)(nil)

// NewDisk makes a disk that server shows, when it has power, under the name.
func NewDisk(server frontend.Frontend, name string, size int64) *Disk {
	d := &Disk{name: name, server: server, dark: true}
	d.insert(blocktest.NewMem(blocktest.MemOptions{Size: size, BlockSize: sector}))
	return d
}

func (d *Disk) insert(mem *blocktest.Mem) {
	d.lines.mem = mem
	d.lines.hang = blocktest.NewDelay(mem)
	d.lines.inject = blocktest.NewInject(d.lines.hang)
}

// PowerOn shows the disk.
func (d *Disk) PowerOn(ctx context.Context) error {
	d.mu.Lock()
	d.dark, d.gone = false, false
	d.mu.Unlock()
	_, err := d.server.Attach(ctx, d.name, d)
	return err
}

// Loss says what a power cut leaves of the writes that were not flushed.
type Loss struct {
	Kept int // percent of the blocks that have something newer than what was flushed last
	Rand *rand.Rand
}

// Cut takes the power away from all the disks at the same instant: from then on they neither do nor answer anything, until
// Bury. What they hold afterwards is what was flushed before, and of the rest what l says.
func Cut(l Loss, disks ...*Disk) {
	for _, d := range disks {
		d.mu.Lock()
	}
	for _, d := range disks {
		d.dark = true
		d.insert(d.lines.mem.CrashClone(blocktest.CrashOptions{UnsyncedPercent: l.Kept, Rand: l.Rand}))
	}
	for _, d := range disks {
		d.mu.Unlock()
	}
}

// Bury takes a dark disk from its machine, which must be dead: nobody is there to hear of the requests that were never answered.
func (d *Disk) Bury(ctx context.Context) error {
	a, err := d.server.Attach(ctx, d.name, d) // the one that there is
	if err != nil {
		return err
	}
	a.Kill()
	d.mu.Lock()
	lost := d.lost
	d.lost, d.gone = nil, true
	d.mu.Unlock()
	for _, r := range lost {
		r.By.Complete(r, block.ErrClosed)
	}
	return nil
}

// FailFlushes lets every flush fail from now on, after it was carried out, as a disk does that says so too late. The cure
// takes it back and tells how many failed.
func (d *Disk) FailFlushes() (cure func() int) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	inject := d.lines.inject
	failed := inject.Add(blocktest.Rule{Op: block.OpFlush, Err: block.ErrIO})
	return func() int {
		inject.Clear()
		return failed()
	}
}

// Hang lets every request hang from now on. The cure lets them go on.
func (d *Disk) Hang() (cure func()) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	hang := d.lines.hang
	hang.Pause(blocktest.BeforeStart, nil)
	return hang.Resume
}

// Info implements block.Device.
func (d *Disk) Info() block.Info {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.lines.inject.Info()
}

// Submit implements block.Device.
func (d *Disk) Submit(batch []*block.Request) {
	d.mu.RLock()
	if !d.dark {
		defer d.mu.RUnlock()
		d.lines.inject.Submit(batch)
		return
	}
	d.mu.RUnlock()
	d.mu.Lock()
	gone := d.gone
	if !gone {
		d.lost = append(d.lost, batch...)
	}
	d.mu.Unlock()
	if gone {
		for _, r := range batch {
			r.By.Complete(r, block.ErrClosed)
		}
	}
}

// Close implements block.Device.
func (d *Disk) Close() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.dark {
		return errors.New("vm: the disk has power")
	}
	return d.lines.inject.Close()
}

package backing

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/invariant"
)

// Sizes of a ring. An op has a slot from submission to completion; there are as
// many slots as completion entries, so that completions never overflow.
const (
	ringEntries = 256
	ringSlots   = 1024
	// ringHeld is how many lock files a ring can keep: the pool's and one a replica.
	ringHeld = 1024
	// ringWake is the user data of the read that wakes; slots have smaller ones.
	ringWake = ringSlots
)

// From linux/io_uring.h.
const (
	ringSetupCQSize       = 1 << 3
	ringSetupSingleIssuer = 1 << 12
	ringSetupDeferTaskrun = 1 << 13
	ringEnterGetEvents    = 1 << 0
	ringFeatSingleMmap    = 1 << 0
	ringFeatNoDrop        = 1 << 1
	ringOffSQEs           = 0x10000000
	ringRegisterFiles     = 2
	ringUpdateFiles       = 6
	ringRegisterProbe     = 8

	ringOpRead      = 22
	ringOpWrite     = 23
	ringOpSupported = 1
)

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		_                                                           uint64
	}
	cq struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
		_                                                           uint64
	}
}

// ringSQE is struct io_uring_sqe.
type ringSQE struct {
	opcode, flags uint8
	_             uint16
	fd            int32
	off, addr     uint64
	len, opFlags  uint32
	userData      uint64
	_             [3]uint64
}

// ringCQE is struct io_uring_cqe.
type ringCQE struct {
	userData uint64
	res      int32
	flags    uint32
}

// filesUpdate is struct io_uring_files_update and the one file that it points to.
type filesUpdate struct {
	offset uint32
	_      uint32
	fds    uint64
	fd     int32
}

// uring is an engine of io_uring. One thread owns the ring: it starts what the
// others have queued and tells the owners of what has ended, a batch of both with
// each system call, and sleeps in that call. It is woken through an eventfd that
// it always reads.
//
// What the kernel would hand to a thread of its own anyway (fdatasync, fallocate)
// goes to threads, and so does a read or write that is alone: there is nothing to
// batch it with, and a thread that waits in the system call takes fewer wake-ups.
type uring struct {
	threads *threads
	fd      int
	event   int    // eventfd
	mem     []byte // submission and completion ring
	sqes    []ringSQE
	rings   []byte // sqes' memory

	sqTail, cqHead, cqTail *atomic.Uint32
	sqMask, cqMask         uint32
	cqes                   []ringCQE

	mu struct {
		sync.Mutex
		first, last *op      // wait for the owner of the ring
		calls       []func() // for its thread to do
		asleep      bool     // the owner is to be woken
		closed      bool
	}
	inRing  atomic.Int64 // ops that were queued and whose owners were not told
	stopped chan struct{}

	// By the owner only.
	slots  [ringSlots]*op
	free   []uint32 // slots
	tail   uint32   // of the entries that were filled in
	filled uint32   // entries that the kernel does not have yet
	held   []bool   // registered files in use
	update filesUpdate
	wakes  [8]byte // what is read from event
}

// ringFlags are what a ring is set up with: the first that the kernel knows. With
// those from Linux 6.1 on, completions are worked off by the owner when it asks
// for them and interrupt nobody.
var ringFlags = []uint32{ringSetupCQSize | ringSetupSingleIssuer | ringSetupDeferTaskrun, ringSetupCQSize}

// newUring starts a ring, or says why the kernel does not let it.
func newUring(flags []uint32) (*uring, error) {
	u := &uring{fd: -1, event: -1, threads: newThreads(), stopped: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the ring is this thread's, and ends with it
		defer close(u.stopped)
		err := u.open(flags)
		started <- err
		if err == nil {
			u.run()
		}
		u.release()
	}()
	if err := <-started; err != nil {
		<-u.stopped
		return nil, err
	}
	return u, nil
}

func (u *uring) open(flags []uint32) error {
	var p ringParams
	var fd uintptr
	errno := unix.EINVAL
	for i := 0; i < len(flags) && errno == unix.EINVAL; i++ {
		p = ringParams{flags: flags[i], cqEntries: ringSlots}
		fd, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, ringEntries, uintptr(unsafe.Pointer(&p)), 0)
	}
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	u.fd = int(fd)
	if p.features&(ringFeatSingleMmap|ringFeatNoDrop) != ringFeatSingleMmap|ringFeatNoDrop {
		return fmt.Errorf("io_uring: features %#x are too old", p.features)
	}
	if err := u.probe(); err != nil {
		return err
	}
	if err := u.mmap(&p); err != nil {
		return err
	}
	for i := range uint32(ringSlots - 1) { // one for watch
		u.free = append(u.free, i)
	}
	files := make([]int32, ringHeld)
	for i := range files {
		files[i] = -1
	}
	if err := u.register(ringRegisterFiles, unsafe.Pointer(&files[0]), ringHeld); err != nil {
		return fmt.Errorf("io_uring: register files: %w", err)
	}
	u.held = make([]bool, ringHeld)
	var err error
	if u.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

func (u *uring) register(what uintptr, arg unsafe.Pointer, n uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(u.fd), what, uintptr(arg), n, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// probe checks that the kernel knows the operations that are used.
func (u *uring) probe() error {
	const n = 64
	var p struct {
		lastOp, opsLen uint8
		_              uint16
		_              [3]uint32
		ops            [n]struct {
			op, _ uint8
			flags uint16
			_     uint32
		}
	}
	if err := u.register(ringRegisterProbe, unsafe.Pointer(&p), n); err != nil {
		return fmt.Errorf("io_uring: probe: %w", err)
	}
	for _, o := range []uint8{ringOpRead, ringOpWrite} {
		if p.ops[o].flags&ringOpSupported == 0 {
			return fmt.Errorf("io_uring: operation %d is not known to the kernel", o)
		}
	}
	return nil
}

func (u *uring) mmap(p *ringParams) (err error) {
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(ringCQE{})))
	prot, flags := unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE
	if u.mem, err = unix.Mmap(u.fd, 0, int(size), prot, flags); err != nil {
		return fmt.Errorf("io_uring: mmap rings: %w", err)
	}
	if u.rings, err = unix.Mmap(u.fd, ringOffSQEs, int(p.sqEntries)*int(unsafe.Sizeof(ringSQE{})), prot, flags); err != nil {
		return fmt.Errorf("io_uring: mmap entries: %w", err)
	}
	word := func(off uint32) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&u.mem[off])) }
	u.sqTail, u.cqHead, u.cqTail = word(p.sq.tail), word(p.cq.head), word(p.cq.tail)
	u.sqMask, u.cqMask = word(p.sq.ringMask).Load(), word(p.cq.ringMask).Load()
	u.sqes = unsafe.Slice((*ringSQE)(unsafe.Pointer(&u.rings[0])), p.sqEntries)
	u.cqes = unsafe.Slice((*ringCQE)(unsafe.Pointer(&u.mem[p.cq.cqes])), p.cqEntries)
	for i := range p.sqEntries {
		word(p.sq.array + i*4).Store(i)
	}
	return nil
}

// submit implements engine.
func (u *uring) submit(ops []*op) {
	u.mu.Lock()
	alone := len(ops) == 1 && u.inRing.Load() == 0 && u.threads.idle()
	for i, o := range ops {
		if alone || o.kind != opRead && o.kind != opWrite {
			u.threads.submit(ops[i : i+1])
			continue
		}
		u.inRing.Add(1)
		o.next = nil
		if u.mu.last == nil {
			u.mu.first = o
		} else {
			u.mu.last.next = o
		}
		u.mu.last = o
	}
	if u.mu.first != nil {
		u.wakeLocked()
	}
	u.mu.Unlock()
}

// again queues an op of the ring that has not ended.
func (u *uring) again(o *op) {
	u.inRing.Add(-1)
	u.submit([]*op{o})
}

// wakeLocked makes the owner look for what was queued. Under the lock, so that the
// eventfd is still open.
func (u *uring) wakeLocked() {
	if !u.mu.asleep {
		return // it looks before it sleeps
	}
	u.mu.asleep = false
	one := [8]byte{1}
	if _, err := unix.Write(u.event, one[:]); err != nil {
		invariant.Fail("eventfd: %v", err) // nobody would ever do what is queued
	}
}

// call has the ring's thread do f, and waits for it.
func (u *uring) call(f func()) {
	done := make(chan struct{})
	u.mu.Lock()
	u.mu.calls = append(u.mu.calls, func() { f(); close(done) })
	u.wakeLocked()
	u.mu.Unlock()
	<-done
}

// run is the owner's loop. It ends when the engine is closed.
func (u *uring) run() {
	u.watch()
	var done []ended
	for {
		calls, closed := u.fill()
		for _, f := range calls {
			f()
		}
		if closed {
			return
		}
		if len(calls) > 0 {
			continue // there may be more
		}
		u.enter()
		u.mu.Lock()
		u.mu.asleep = false
		u.mu.Unlock()
		for done = u.collect(done[:0]); len(done) > 0; done = u.collect(done[:0]) {
			u.finish(done)
		}
		clear(done[:cap(done)])
	}
}

// fill makes entries of what is queued, as far as there are slots, and takes the
// calls. Whoever queues more from now on wakes this thread.
func (u *uring) fill() (calls []func(), closed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for u.mu.first != nil && len(u.free) > 0 && u.filled < ringEntries-1 { // one for watch
		o := u.mu.first
		if u.mu.first = o.next; u.mu.first == nil {
			u.mu.last = nil
		}
		slot := u.free[len(u.free)-1]
		u.free = u.free[:len(u.free)-1]
		u.slots[slot] = o
		u.add(entry(o, slot))
	}
	calls, u.mu.calls = u.mu.calls, nil
	u.mu.asleep = len(calls) == 0 && !u.mu.closed
	return calls, u.mu.closed
}

// add puts one entry into the submission ring, which has room for it.
func (u *uring) add(e ringSQE) {
	u.sqes[u.tail&u.sqMask] = e
	u.tail++
	u.filled++
}

// watch has the ring read the eventfd.
func (u *uring) watch() {
	u.add(ringSQE{opcode: ringOpRead, fd: int32(u.event), addr: uint64(uintptr(unsafe.Pointer(&u.wakes))), len: uint32(len(u.wakes)), userData: ringWake})
}

// entry describes o, a read or write, to the kernel.
func entry(o *op, slot uint32) ringSQE {
	e := ringSQE{fd: int32(o.fd), off: uint64(o.off), userData: uint64(slot)}
	e.opcode = ringOpWrite
	if o.kind == opRead {
		e.opcode = ringOpRead
	}
	e.addr, e.len = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(o.buf)))), uint32(len(o.buf))
	return e
}

// enter hands the entries to the kernel and waits until something has ended.
func (u *uring) enter() {
	u.sqTail.Store(u.tail)
	for {
		k, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), uintptr(u.filled), 1, ringEnterGetEvents, 0, 0)
		switch errno {
		case 0:
			u.filled -= uint32(k) // what the kernel had no memory for goes with the next
			return
		case unix.EINTR:
		case unix.EAGAIN, unix.EBUSY, unix.ENOMEM: // short of memory; others make progress
			unix.Nanosleep(&unix.Timespec{Nsec: 100_000}, nil)
			return
		default:
			// Requests would hang, or end while the kernel still has them.
			invariant.Fail("io_uring_enter: %v", errno)
		}
	}
}

// ended is an op and its result.
type ended struct {
	o   *op
	res int32
}

// collect takes what has completed off the ring and frees the slots.
func (u *uring) collect(done []ended) []ended {
	head, tail := u.cqHead.Load(), u.cqTail.Load()
	for ; head != tail; head++ {
		c := u.cqes[head&u.cqMask]
		if c.userData == ringWake {
			u.watch()
			continue
		}
		slot := uint32(c.userData)
		done = append(done, ended{u.slots[slot], c.res})
		u.slots[slot] = nil
		u.free = append(u.free, slot)
	}
	u.cqHead.Store(head)
	return done
}

// finish tells the owners, or submits again what has not ended.
func (u *uring) finish(done []ended) {
	for _, d := range done {
		o, err := d.o, error(nil)
		switch {
		case d.res == -int32(unix.EINTR) || d.res == -int32(unix.EAGAIN) || d.res == -int32(unix.ECANCELED):
			// Never started: a signal, or the thread that submitted it has exited.
			u.again(o)
			continue
		case d.res < 0:
			err = unix.Errno(-d.res)
		default:
			o.buf, o.off = o.buf[d.res:], o.off+int64(d.res)
			if len(o.buf) > 0 && d.res > 0 {
				u.again(o)
				continue
			}
			if len(o.buf) > 0 {
				err = unix.EIO // a chunk file has its full length always
			}
		}
		u.inRing.Add(-1)
		o.owner.opDone(o, err)
	}
}

// hold implements engine: the ring refers to f until it is torn down, and the
// kernel tears it down after its last op has ended.
func (u *uring) hold(f *os.File) (release func(), err error) {
	fd := int32(f.Fd())
	u.call(func() {
		i := slices.Index(u.held, false)
		if i < 0 {
			err = fmt.Errorf("%w: %d replicas of one pool are open", ErrInvalid, ringHeld-1)
		} else if err = u.setFile(i, fd); err != nil {
			err = fmt.Errorf("io_uring: register %s: %w", f.Name(), err)
		} else {
			u.held[i] = true
			release = func() { u.call(func() { u.unhold(i) }) }
		}
	})
	return release, err
}

func (u *uring) unhold(i int) {
	// An error could only leave the entry until the ring is closed; the owner unlocks the file itself.
	_ = u.setFile(i, -1)
	u.held[i] = false
}

func (u *uring) setFile(i int, fd int32) error {
	// In u, so that it does not move with a stack between here and the system call.
	u.update = filesUpdate{offset: uint32(i), fd: fd}
	u.update.fds = uint64(uintptr(unsafe.Pointer(&u.update.fd)))
	return u.register(ringUpdateFiles, unsafe.Pointer(&u.update), 1)
}

// close implements engine.
func (u *uring) close() {
	u.mu.Lock()
	u.mu.closed = true
	u.wakeLocked()
	u.mu.Unlock()
	<-u.stopped
}

// release gives back what open took, as far as it came.
func (u *uring) release() {
	u.threads.close()
	var errs []error
	if u.mem != nil {
		errs = append(errs, unix.Munmap(u.mem))
	}
	if u.rings != nil {
		errs = append(errs, unix.Munmap(u.rings))
	}
	if u.event >= 0 {
		errs = append(errs, unix.Close(u.event))
	}
	if u.fd >= 0 {
		errs = append(errs, unix.Close(u.fd))
	}
	_ = errors.Join(errs...) // nothing is in flight, and nobody could do anything about it
}

package backing

import (
	"errors"
	"fmt"
	"os"
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
)

// From linux/io_uring.h.
const (
	ringSetupCQSize     = 1 << 3
	ringFeatSingleMmap  = 1 << 0
	ringFeatNoDrop      = 1 << 1
	ringOffSQEs         = 0x10000000
	ringRegisterFiles   = 2
	ringRegisterEventfd = 4
	ringUpdateFiles     = 6
	ringRegisterProbe   = 8

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

// uring is an engine of io_uring: one system call starts a batch, and completions
// arrive at one goroutine, woken through an eventfd.
//
// Whoever submits while another goroutine is in the system call leaves its ops in
// the queue for that one, so that submit never waits and batches grow under load.
//
// What the kernel would hand to a thread of its own anyway (fdatasync, fallocate)
// goes to threads, and so does a read or write that is alone: there is nothing to
// batch it with, and a thread that waits in the system call is woken once where
// the ring takes two wake-ups.
type uring struct {
	threads *threads
	fd      int
	event   *os.File
	mem     []byte // submission and completion ring
	sqes    []ringSQE
	rings   []byte // sqes' memory

	sqTail, cqHead, cqTail *atomic.Uint32
	sqMask, cqMask         uint32
	cqes                   []ringCQE

	mu struct {
		sync.Mutex
		first, last *op // wait for the submitter or for a slot
		submitting  bool
		free        []uint32 // slots
		held        []bool   // registered files in use
		update      filesUpdate
	}
	slots   [ringSlots]*op
	closed  atomic.Bool
	stopped chan struct{}
}

// newUring starts a ring, or says why the kernel does not let it.
func newUring() (_ *uring, err error) {
	u := &uring{fd: -1, threads: newThreads(), stopped: make(chan struct{})}
	defer func() {
		if err != nil {
			u.free()
		}
	}()
	p := ringParams{flags: ringSetupCQSize, cqEntries: ringSlots}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringEntries, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	u.fd = int(fd)
	if p.features&(ringFeatSingleMmap|ringFeatNoDrop) != ringFeatSingleMmap|ringFeatNoDrop {
		return nil, fmt.Errorf("io_uring: features %#x are too old", p.features)
	}
	if err := u.probe(); err != nil {
		return nil, err
	}
	if err := u.mmap(&p); err != nil {
		return nil, err
	}
	for i := range uint32(ringSlots) {
		u.mu.free = append(u.mu.free, i)
	}
	files := make([]int32, ringHeld)
	for i := range files {
		files[i] = -1
	}
	if err := u.register(ringRegisterFiles, unsafe.Pointer(&files[0]), ringHeld); err != nil {
		return nil, fmt.Errorf("io_uring: register files: %w", err)
	}
	u.mu.held = make([]bool, ringHeld)
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	u.event = os.NewFile(uintptr(efd), "eventfd")
	efd32 := int32(efd)
	if err := u.register(ringRegisterEventfd, unsafe.Pointer(&efd32), 1); err != nil {
		return nil, fmt.Errorf("io_uring: register eventfd: %w", err)
	}
	go u.reap()
	return u, nil
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

func (u *uring) submit(ops []*op) {
	u.mu.Lock()
	alone := len(ops) == 1 && len(u.mu.free) == ringSlots && u.mu.first == nil && u.threads.idle()
	for i, o := range ops {
		if alone || o.kind != opRead && o.kind != opWrite {
			u.threads.submit(ops[i : i+1])
		} else {
			u.pushLocked(o)
		}
	}
	u.pumpLocked()
	u.mu.Unlock()
}

func (u *uring) pushLocked(o *op) {
	o.next = nil
	if u.mu.last == nil {
		u.mu.first = o
	} else {
		u.mu.last.next = o
	}
	u.mu.last = o
}

// pumpLocked submits what is queued, as far as there are slots, unless somebody
// else is at it. It gives the lock up in between.
func (u *uring) pumpLocked() {
	if u.mu.submitting {
		return
	}
	u.mu.submitting = true
	for {
		n := uint32(0)
		tail := u.sqTail.Load()
		for ; n < ringEntries && u.mu.first != nil && len(u.mu.free) > 0; n++ {
			o := u.mu.first
			if u.mu.first = o.next; u.mu.first == nil {
				u.mu.last = nil
			}
			slot := u.mu.free[len(u.mu.free)-1]
			u.mu.free = u.mu.free[:len(u.mu.free)-1]
			u.slots[slot] = o
			u.sqes[(tail+n)&u.sqMask] = entry(o, slot)
		}
		if n == 0 {
			break
		}
		u.sqTail.Store(tail + n)
		u.mu.Unlock()
		u.enter(n)
		u.mu.Lock()
	}
	u.mu.submitting = false
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

// enter hands n entries to the kernel. It comes back only when all have been
// taken: there is no other way to get rid of an entry.
func (u *uring) enter(n uint32) {
	for n > 0 {
		k, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), uintptr(n), 0, 0, 0, 0)
		switch errno {
		case 0:
			n -= uint32(k)
		case unix.EINTR, unix.EAGAIN, unix.EBUSY, unix.ENOMEM: // short of memory; others make progress
			unix.Nanosleep(&unix.Timespec{Nsec: 100_000}, nil)
		default:
			// Requests would hang, or end while the kernel still has them.
			invariant.Fail("io_uring_enter: %v", errno)
		}
	}
}

// reap tells the owners of completed ops, until the ring is closed.
func (u *uring) reap() {
	defer close(u.stopped)
	var done []ended
	var buf [8]byte
	for {
		if _, err := u.event.Read(buf[:]); err != nil || u.closed.Load() {
			return
		}
		for done = u.collect(done[:0]); len(done) > 0; done = u.collect(done[:0]) {
			u.finish(done)
		}
		clear(done[:cap(done)])
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
	if head == tail {
		return done
	}
	u.mu.Lock()
	for ; head != tail; head++ {
		c := u.cqes[head&u.cqMask]
		slot := uint32(c.userData)
		done = append(done, ended{u.slots[slot], c.res})
		u.slots[slot] = nil
		u.mu.free = append(u.mu.free, slot)
	}
	u.cqHead.Store(head)
	u.pumpLocked()
	u.mu.Unlock()
	return done
}

// finish tells the owners, or submits again what has not ended.
func (u *uring) finish(done []ended) {
	for _, d := range done {
		o, err := d.o, error(nil)
		switch {
		case d.res == -int32(unix.EINTR) || d.res == -int32(unix.EAGAIN) || d.res == -int32(unix.ECANCELED):
			// Never started: the thread that submitted it has exited, or has a signal.
			u.submit([]*op{o})
			continue
		case d.res < 0:
			err = unix.Errno(-d.res)
		default:
			o.buf, o.off = o.buf[d.res:], o.off+int64(d.res)
			if len(o.buf) > 0 && d.res > 0 {
				u.submit([]*op{o})
				continue
			}
			if len(o.buf) > 0 {
				err = unix.EIO // a chunk file has its full length always
			}
		}
		o.owner.opDone(o, err)
	}
}

// hold implements engine: the ring refers to f until it is torn down, and the
// kernel tears it down after its last op has ended.
func (u *uring) hold(f *os.File) (func(), error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.mu.held {
		if !u.mu.held[i] {
			if err := u.setFileLocked(i, int32(f.Fd())); err != nil {
				return nil, fmt.Errorf("io_uring: register %s: %w", f.Name(), err)
			}
			u.mu.held[i] = true
			return func() { u.unhold(i) }, nil
		}
	}
	return nil, fmt.Errorf("%w: %d replicas of one pool are open", ErrInvalid, ringHeld-1)
}

func (u *uring) unhold(i int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	// An error could only leave the entry until the ring is closed; the owner unlocks the file itself.
	_ = u.setFileLocked(i, -1)
	u.mu.held[i] = false
}

func (u *uring) setFileLocked(i int, fd int32) error {
	// In u, so that it does not move with a stack between here and the system call.
	u.mu.update = filesUpdate{offset: uint32(i), fd: fd}
	u.mu.update.fds = uint64(uintptr(unsafe.Pointer(&u.mu.update.fd)))
	return u.register(ringUpdateFiles, unsafe.Pointer(&u.mu.update), 1)
}

func (u *uring) close() {
	u.closed.Store(true)
	if _, err := u.event.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err == nil {
		<-u.stopped
	}
	u.free()
}

func (u *uring) free() {
	u.threads.close()
	var errs []error
	if u.mem != nil {
		errs = append(errs, unix.Munmap(u.mem))
	}
	if u.rings != nil {
		errs = append(errs, unix.Munmap(u.rings))
	}
	if u.event != nil {
		errs = append(errs, u.event.Close())
	}
	if u.fd >= 0 {
		errs = append(errs, unix.Close(u.fd))
	}
	_ = errors.Join(errs...) // nothing is in flight, and nobody could do anything about it
}

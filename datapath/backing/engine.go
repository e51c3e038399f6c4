package backing

import (
	"os"

	"golang.org/x/sys/unix"
)

// opKind is the system call of an op.
type opKind uint8

const (
	opRead     opKind = iota + 1 // pread until buf is full
	opWrite                      // pwrite until buf is written
	opDataSync                   // fdatasync
	opPunch                      // give [off, off+length) back; it reads as zeroes
	opZero                       // [off, off+length) reads as zeroes and is allocated
)

// op is one operation on a chunk file. It belongs to the engine from submit until
// its owner is told.
type op struct {
	kind   opKind
	fd     int
	off    int64  // in the file
	length int64  // opPunch, opZero
	buf    []byte // opRead, opWrite; aligned to the page; shrinks from the front as bytes are done
	chunk  *chunk
	owner  opOwner
	next   *op // in a queue
}

// opOwner is told, once and on any goroutine, that an op has ended. It does not block.
type opOwner interface{ opDone(o *op, err error) }

// engine does ops. submit never blocks and may be called from any goroutine,
// from opDone too; how many ops wait is bounded by the requests that the callers
// of the Replicas have in flight.
type engine interface {
	submit(ops []*op)
	// hold keeps f's open file description alive until every op has ended, even if
	// the process is killed (I17). release is called when none is in flight any more.
	hold(f *os.File) (release func(), err error)
	// close is called when no op is in flight.
	close()
}

// runOp does o on the calling thread.
func runOp(o *op) error {
	switch o.kind {
	case opRead, opWrite:
		for len(o.buf) > 0 {
			n, err := rwOnce(o)
			if err == unix.EINTR {
				continue
			}
			if err == nil && n == 0 {
				err = unix.EIO // a chunk file has its full length always
			}
			if err != nil {
				return err
			}
			o.buf, o.off = o.buf[n:], o.off+int64(n)
		}
		return nil
	case opDataSync:
		return unix.Fdatasync(o.fd)
	default:
		for {
			if err := unix.Fallocate(o.fd, fallocMode(o.kind), o.off, o.length); err != unix.EINTR {
				return err
			}
		}
	}
}

func rwOnce(o *op) (int, error) {
	if o.kind == opRead {
		return unix.Pread(o.fd, o.buf, o.off)
	}
	return unix.Pwrite(o.fd, o.buf, o.off)
}

func fallocMode(k opKind) uint32 {
	if k == opPunch {
		return unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	}
	return unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
}

package meta

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
)

// PageFile is where metadata live. Offsets and lengths are multiples of PageSize.
// A write is stable when WriteAt returns nil; after an error, or a crash during
// it, each page of it is old, new or damaged. Reads and writes of different
// pages may be concurrent.
type PageFile interface {
	io.ReaderAt
	io.WriterAt
}

// Pages is a PageFile on a local file, opened with O_DIRECT and O_DSYNC: nothing
// of it is ever in the page cache, and every write is on the medium on return.
type Pages struct {
	f *os.File

	mu  sync.Mutex
	buf *block.Buffer // aligned, one page; nil when closed
}

// OpenPages opens the existing file at path.
func OpenPages(path string) (*Pages, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		return nil, err
	}
	return &Pages{f: f, buf: block.NewBuffer(PageSize)}, nil
}

// CreatePages makes a file of n zero pages at path with all its space allocated
// and written, so that later writes need none. The file is stable on return, its
// directory entry is not. It fails if path exists.
func CreatePages(path string, n int64) (*Pages, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_DIRECT, 0o600)
	if err != nil {
		return nil, err
	}
	if err := FillZero(f, 0, n*PageSize); err != nil {
		f.Close()
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return OpenPages(path)
}

// FillZero writes zeroes to the bytes [off, end) of f, whole pages; f may be open with O_DIRECT. They are stable on nil.
func FillZero(f *os.File, off, end int64) error {
	buf := block.NewBuffer(block.MaxIO)
	defer buf.Release()
	clear(buf.Bytes())
	for off < end {
		k, err := f.WriteAt(buf.Bytes()[:min(block.MaxIO, end-off)], off)
		if err != nil {
			return err
		}
		off += int64(k)
	}
	return f.Sync()
}

// ReadAt implements io.ReaderAt.
func (p *Pages) ReadAt(b []byte, off int64) (int, error) { return p.each(b, off, false) }

// WriteAt implements io.WriterAt. Every page is stable on return.
func (p *Pages) WriteAt(b []byte, off int64) (int, error) { return p.each(b, off, true) }

func (p *Pages) each(b []byte, off int64, write bool) (int, error) {
	if off%PageSize != 0 || len(b)%PageSize != 0 {
		return 0, fmt.Errorf("%w: %d bytes at %d are not whole pages", ErrInvalid, len(b), off)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.buf == nil {
		return 0, os.ErrClosed
	}
	buf := p.buf
	if len(b) > PageSize {
		buf = block.NewBuffer(min(len(b), block.MaxIO))
		defer buf.Release()
	}
	for done := 0; done < len(b); {
		piece := buf.Bytes()[:min(len(b)-done, len(buf.Bytes()))]
		var err error
		if write {
			copy(piece, b[done:])
			_, err = p.f.WriteAt(piece, off+int64(done))
		} else if _, err = p.f.ReadAt(piece, off+int64(done)); err == nil {
			copy(b[done:], piece)
		}
		if err != nil {
			return done, err
		}
		done += len(piece)
	}
	return len(b), nil
}

// Fd is the file's descriptor, for asynchronous writes of whole pages. They are
// stable when they end, as those of WriteAt.
func (p *Pages) Fd() int { return int(p.f.Fd()) }

// Close releases the file. Twice is nil.
func (p *Pages) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.buf == nil {
		return nil
	}
	p.buf.Release()
	p.buf = nil
	return p.f.Close()
}

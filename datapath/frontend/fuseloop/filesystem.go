package fuseloop

import (
	"log"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
)

const (
	fsType   = "tandem" // mounts are of type fuse.tandem
	fileName = "device"

	rootNode = fuse.FUSE_ROOT_ID
	fileNode = 2

	// maxWrite is the largest read or write that the kernel sends, bytes. A device takes it as one.
	maxWrite = block.MaxIO
	// loopDepth is how many requests a loop device sends at a time.
	loopDepth = 128
	// forever is how long the kernel may keep what it knows about the file: of a new size it is told.
	forever = 1000 * time.Hour
)

// fileSystem is a root directory with one file, which is the device.
type fileSystem struct {
	fuse.RawFileSystem
	dev      block.Device
	released func()

	edges sync.Mutex // held over the read and the write of a block that is written in part
}

func newFileSystem(a *Attachment) *fileSystem {
	return &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		dev:           a.gate,
		released:      a.released,
	}
}

// size is that of the device now, bytes.
func (s *fileSystem) size() int64 { return s.dev.Info().Size }

// String implements fuse.RawFileSystem.
func (s *fileSystem) String() string { return fsType }

func (s *fileSystem) attr(node uint64, out *fuse.Attr) fuse.Status {
	switch node {
	case rootNode:
		*out = fuse.Attr{Ino: rootNode, Mode: unix.S_IFDIR | 0o500, Nlink: 2}
	case fileNode:
		*out = fuse.Attr{
			Ino: fileNode, Mode: unix.S_IFREG | 0o600, Nlink: 1,
			Size: uint64(s.size()), Blocks: uint64(s.size() / 512), Blksize: loopBlock,
		}
	default:
		return fuse.ENOENT
	}
	return fuse.OK
}

// Lookup implements fuse.RawFileSystem.
func (s *fileSystem) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != rootNode || name != fileName {
		return fuse.ENOENT
	}
	out.NodeId = fileNode
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	return s.attr(fileNode, &out.Attr)
}

// GetAttr implements fuse.RawFileSystem.
func (s *fileSystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(forever)
	return s.attr(in.NodeId, &out.Attr)
}

// Open implements fuse.RawFileSystem.
func (s *fileSystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId != fileNode {
		return fuse.EINVAL
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// Release implements fuse.RawFileSystem.
func (s *fileSystem) Release(<-chan struct{}, *fuse.ReleaseIn) { go s.released() }

// StatFs implements fuse.RawFileSystem. The loop driver takes the block size for
// the granularity of discards.
func (s *fileSystem) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = loopBlock, loopBlock, 255
	out.Blocks = uint64(s.size() / loopBlock)
	return fuse.OK
}

// Read implements fuse.RawFileSystem.
func (s *fileSystem) Read(_ <-chan struct{}, in *fuse.ReadIn, p []byte) (fuse.ReadResult, fuse.Status) {
	off := int64(in.Offset)
	n := min(int64(len(p)), s.size()-off)
	if n <= 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	p = p[:n]
	var err error
	if aligned(off, n) {
		err = block.Do(s.dev, block.Request{Op: block.OpRead, Off: off, Len: n, Data: p})
	} else {
		err = s.readPart(p, off)
	}
	if err != nil {
		return nil, status(block.OpRead, err) // a result beside an error would hide it
	}
	return fuse.ReadResultData(p), fuse.OK
}

// Write implements fuse.RawFileSystem.
func (s *fileSystem) Write(_ <-chan struct{}, in *fuse.WriteIn, p []byte) (uint32, fuse.Status) {
	off, n := int64(in.Offset), int64(len(p))
	var err error
	if aligned(off, n) {
		// The kernel's memory may change while it is written; p is a copy of it
		// already, but it is not ours beyond this call.
		b := block.NewBuffer(len(p))
		copy(b.Bytes(), p)
		err = block.Do(s.dev, block.Request{Op: block.OpWrite, Off: off, Len: n, Data: b.Bytes(), Buf: b})
		b.Release()
	} else {
		err = s.writePart(p, off)
	}
	if err != nil {
		return 0, status(block.OpWrite, err)
	}
	return uint32(n), fuse.OK
}

// Fsync implements fuse.RawFileSystem.
func (s *fileSystem) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status {
	return status(block.OpFlush, block.Flush(s.dev))
}

// Fallocate implements fuse.RawFileSystem.
func (s *fileSystem) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	r := block.Request{Off: int64(in.Offset), Len: int64(in.Length)}
	caps := s.dev.Info().Caps
	switch {
	case in.Mode == unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE && caps&block.CapDiscard != 0:
		r.Op = block.OpDiscard
	case in.Mode == unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE:
		r.Op = block.OpWriteZeroes
	case in.Mode == unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE:
		r.Op, r.Flags = block.OpWriteZeroes, block.NoHole
	default:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return status(r.Op, block.Do(s.dev, r))
}

func aligned(off, n int64) bool { return (off|n)&(loopBlock-1) == 0 }

// The kernel splits a write whose memory is scattered over more than 256 pages
// at a page of memory, which need not be a block of the device. Such parts come
// here, two for a block, and take turns. The limit that tune sets on the size of
// requests makes them rare.

// around is the range of whole blocks around [off, off+n).
func around(off, n int64) (start, length int64) {
	start = off &^ (loopBlock - 1)
	return start, (off+n+loopBlock-1)&^(loopBlock-1) - start
}

func (s *fileSystem) readPart(p []byte, off int64) error {
	start, length := around(off, int64(len(p)))
	b := block.NewBuffer(int(length))
	defer b.Release()
	if err := block.ReadAt(s.dev, b.Bytes(), start); err != nil {
		return err
	}
	copy(p, b.Bytes()[off-start:])
	return nil
}

func (s *fileSystem) writePart(p []byte, off int64) error {
	start, length := around(off, int64(len(p)))
	b := block.NewBuffer(int(length))
	defer b.Release()
	s.edges.Lock()
	defer s.edges.Unlock()
	first, last := b.Bytes()[:loopBlock], b.Bytes()[length-loopBlock:]
	if err := block.ReadAt(s.dev, first, start); err != nil {
		return err
	}
	if length > loopBlock {
		if err := block.ReadAt(s.dev, last, start+length-loopBlock); err != nil {
			return err
		}
	}
	copy(b.Bytes()[off-start:], p)
	return block.WriteAt(s.dev, b.Bytes(), start, 0)
}

// stdLogger is for what go-fuse has to say: requests that it does not know, replies that came too late.
func stdLogger(lg *zap.Logger) (*log.Logger, error) {
	return zap.NewStdLogAt(lg.Named("go-fuse"), zap.DebugLevel)
}

package backing

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
)

// FSInfo tells what a pool lies on.
type FSInfo struct {
	Type    string // "xfs", "ext4", or the magic number of another one
	Safe    bool   // one whose durability is known
	Reflink bool   // chunks can be cloned (snapshots)
}

// checkFS finds out what dir lies on.
func checkFS(dir *os.File, allowAny bool) (FSInfo, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return FSInfo{}, &os.PathError{Op: "statfs", Path: dir.Name(), Err: err}
	}
	switch st.Type {
	case unix.XFS_SUPER_MAGIC:
		return FSInfo{Type: "xfs", Safe: true}, nil
	case unix.EXT4_SUPER_MAGIC:
		return FSInfo{Type: "ext4", Safe: true}, nil
	}
	fi := FSInfo{Type: fmt.Sprintf("%#x", uint32(st.Type))}
	if !allowAny {
		return fi, fmt.Errorf("%w: %s is on a file system of type %s; pools need xfs or ext4, "+
			"whose durability is known (allowAnyFS of the pool in the configuration takes the risk)", ErrUnsafeFS, dir.Name(), fi.Type)
	}
	return fi, nil
}

// probeFS does on a file in dir what replicas will do: direct I/O in pieces of
// block.SectorSize, holes, zeroed ranges. A failure is ErrUnsafeFS.
func probeFS(dir string) (reflink bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: %s: %w", ErrUnsafeFS, dir, err)
		}
	}()
	path := filepath.Join(dir, "probe")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_DIRECT, 0o600)
	if err != nil {
		return false, fmt.Errorf("direct I/O: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	buf := block.NewBuffer(block.SectorSize)
	defer buf.Release()
	for off := int64(0); off < 3*block.SectorSize; off += block.SectorSize {
		if _, err := f.WriteAt(buf.Bytes(), off); err != nil {
			return false, fmt.Errorf("direct write of %d bytes: %w", block.SectorSize, err)
		}
	}
	for _, k := range []opKind{opPunch, opZero} {
		if err := unix.Fallocate(int(f.Fd()), fallocMode(k), block.SectorSize, block.SectorSize); err != nil {
			return false, fmt.Errorf("fallocate mode %#x: %w", fallocMode(k), err)
		}
	}
	if err := f.Sync(); err != nil {
		return false, fmt.Errorf("fsync: %w", err)
	}
	return probeReflink(path, f), nil
}

// probeReflink reports whether f can be cloned.
func probeReflink(path string, f *os.File) bool {
	c, err := os.OpenFile(path+".clone", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return false
	}
	defer os.Remove(c.Name())
	defer c.Close()
	return unix.IoctlFileClone(int(c.Fd()), int(f.Fd())) == nil
}

// Level says how full a pool is.
type Level int

// Levels. The thresholds are shares of used space.
const (
	LevelOK     Level = iota
	LevelWarn         // 80 %: tell somebody
	LevelNoThin       // 85 %: no new thin replicas
	LevelEvict        // 97 %: replicas here should leave their in-sync sets before they must
)

func (l Level) String() string {
	return [...]string{"ok", "warn", "no-new-thin", "evict"}[l]
}

const (
	warnPercent   = 80
	noThinPercent = 85
	evictPercent  = 97
	roomyPercent  = 90 // see Crowded
)

// Capacity of a pool, in bytes.
type Capacity struct {
	Total       int64
	Free        int64
	Used        int64 // Total - Free, by whomever
	Provisioned int64 // sum of the sizes of all replicas
	Level       Level
}

// Capacity tells how full the pool is. It makes a system call and does not wait for I/O.
func (p *Pool) Capacity() (Capacity, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(p.dir.Fd()), &st); err != nil {
		return Capacity{}, &os.PathError{Op: "statfs", Path: p.o.Path, Err: err}
	}
	p.mu.Lock()
	prov := p.mu.provisioned
	p.mu.Unlock()
	return capacity(int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize, p.o.ReserveBytes, prov), nil
}

// Crowded reports whether replicas here should leave their in-sync sets, and not
// join again: from LevelEvict on until less than 90 % are used. The gap keeps a
// replica whose resync fills the pool from joining and leaving for ever. It is
// forgotten when the pool is closed.
func (p *Pool) Crowded() (bool, error) {
	c, err := p.Capacity()
	if err != nil {
		return false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.crowded = c.crowded(p.mu.crowded)
	return p.mu.crowded, nil
}

func (c Capacity) crowded(was bool) bool {
	return c.Level == LevelEvict || was && c.Used >= c.Total/100*roomyPercent
}

func capacity(total, free, reserve, provisioned int64) Capacity {
	c := Capacity{Total: total, Free: max(free-reserve, 0), Provisioned: provisioned}
	c.Used = c.Total - c.Free
	switch {
	case c.Used > c.Total/100*evictPercent:
		c.Level = LevelEvict
	case c.Used > c.Total/100*noThinPercent:
		c.Level = LevelNoThin
	case c.Used > c.Total/100*warnPercent:
		c.Level = LevelWarn
	}
	return c
}

package backing

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/meta"
)

// Extended attributes; FORMAT.md of package meta has their bytes.
const (
	xattrSuperblock = "user.tandem.sb"
	xattrChunk      = "user.tandem.chunk"
)

// fsIocGetVersion is FS_IOC_GETVERSION, which x/sys/unix lacks.
const fsIocGetVersion = 0x80087601

// inodeOf names f's inode for its lifetime: number and generation, as in an NFS
// handle. Neither changes with mounts, device names or reboots; a copy has
// another. A file system without generations (unsafe ones) leaves them 0.
func inodeOf(f *os.File) (id [16]byte, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return id, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	binary.LittleEndian.PutUint64(id[:], st.Ino)
	if gen, err := unix.IoctlGetInt(int(f.Fd()), fsIocGetVersion); err == nil {
		binary.LittleEndian.PutUint32(id[8:], uint32(gen))
	}
	return id, nil
}

// poolIdentity is the content of pool.json.
type poolIdentity struct {
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	Pool    string `json:"pool"`
	Node    string `json:"node"`
	Inode   string `json:"inode"` // of pool.json itself
}

const poolVersion = 1

// maxIdentity bounds what is read of a pool.json.
const maxIdentity = 64 << 10

// loadIdentity reads pool.json of an existing pool and checks that it is meant here.
func (p *Pool) loadIdentity() error {
	f, err := os.Open(filepath.Join(p.o.Path, identityFile))
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIdentity))
	if err != nil {
		return err
	}
	var id poolIdentity
	if err := json.Unmarshal(b, &id); err != nil {
		return fmt.Errorf("%w: %s: %w; do not initialise this directory, restore the file or make a new pool", ErrIdentityMissing, f.Name(), err)
	}
	inode, err := inodeOf(f)
	if err != nil {
		return err
	}
	remedy := "make a new pool in an empty directory and let its replicas resync"
	switch {
	case id.Version != poolVersion:
		return fmt.Errorf("%w: pool %s has version %d, this program knows %d", meta.ErrIncompatible, p.o.Path, id.Version, poolVersion)
	case id.Cluster != hex.EncodeToString(p.o.Cluster[:]):
		return fmt.Errorf("%w: pool %s is of cluster %s, not %x; %s", ErrForeign, p.o.Path, id.Cluster, p.o.Cluster, remedy)
	case id.Node != p.o.Node:
		return fmt.Errorf("%w: pool %s is of node %q, not %q; %s", ErrForeign, p.o.Path, id.Node, p.o.Node, remedy)
	case id.Inode != hex.EncodeToString(inode[:]):
		return fmt.Errorf("%w: pool %s is a copy of another directory; %s", ErrForeign, p.o.Path, remedy)
	}
	if n, err := hex.Decode(p.id[:], []byte(id.Pool[:min(len(id.Pool), 32)])); err != nil || n != len(p.id) {
		return fmt.Errorf("%w: %s: pool id %q", ErrIdentityMissing, f.Name(), id.Pool)
	}
	return nil
}

// makeIdentity turns an empty directory into a pool.
func (p *Pool) makeIdentity() error {
	p.id = newUUID()
	path := filepath.Join(p.o.Path, tmpDir, identityFile)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	inode, err := inodeOf(f)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(poolIdentity{
		Version: poolVersion,
		Cluster: hex.EncodeToString(p.o.Cluster[:]),
		Pool:    hex.EncodeToString(p.id[:]),
		Node:    p.o.Node,
		Inode:   hex.EncodeToString(inode[:]),
	}, "", "  ")
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(p.o.Path, identityFile)); err != nil {
		return err
	}
	return p.dir.Sync()
}

// chunkIdentity is the value of xattrChunk: volume, replica, chunk number,
// epoch of creation, inode.
const chunkIdentityLen = 16 + 16 + 8 + 8 + 16

func chunkIdentity(k key, n int64, epoch uint64, inode [16]byte) []byte {
	b := make([]byte, 0, chunkIdentityLen)
	b = append(b, k.volume[:]...)
	b = append(b, k.replica[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(n))
	b = binary.LittleEndian.AppendUint64(b, epoch)
	return append(b, inode[:]...)
}

// checkChunk says whether f is the file that was made as chunk n of k.
func checkChunk(f *os.File, k key, n, size int64) error {
	const remedy = "replace the replica (tandemctl volume replica replace)"
	got, err := xattr.FGet(f, xattrChunk)
	if errors.Is(err, xattr.ENOATTR) {
		return fmt.Errorf("%w: %s has no identity, it was not made here; %s", ErrMisplaced, f.Name(), remedy)
	}
	if err != nil {
		return err
	}
	inode, err := inodeOf(f)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var epoch uint64
	if len(got) == chunkIdentityLen {
		epoch = binary.LittleEndian.Uint64(got[40:])
	}
	want := chunkIdentity(k, n, epoch, inode)
	switch {
	case !bytes.Equal(got, want):
		return fmt.Errorf("%w: %s was made as another chunk or is a copy (identity %x, expected %x); %s", ErrMisplaced, f.Name(), got, want, remedy)
	case st.Size() != size:
		return fmt.Errorf("%w: %s has %d bytes instead of %d; %s", ErrMisplaced, f.Name(), st.Size(), size, remedy)
	}
	return nil
}

// dirName is the name of a replica's directory in replicas/.
func (k key) dirName() string {
	return hex.EncodeToString(k.volume[:]) + "." + hex.EncodeToString(k.replica[:])
}

func parseDirName(s string) (k key, ok bool) {
	v, r, ok := strings.Cut(s, ".")
	if !ok || len(v) != 32 || len(r) != 32 {
		return k, false
	}
	_, err1 := hex.Decode(k.volume[:], []byte(v))
	_, err2 := hex.Decode(k.replica[:], []byte(r))
	return k, err1 == nil && err2 == nil && k.dirName() == s
}

// syncDir makes the entries of the directory at path stable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// exists reports whether path is there.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

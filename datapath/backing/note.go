package backing

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tandem-storage/tandem/datapath/meta"
)

// noteFile and revertFile are in a replica's directory; FORMAT.md of package meta tells of them.
const (
	noteFile   = "note"
	revertFile = "reverting"
)

// MaxNote is the longest note, in bytes.
const MaxNote = 512 << 10

// SetNote keeps b beside a replica, for whoever has to find out later what it was a replica of. Nothing here reads it. It is
// stable on nil; after a crash it is the old one or the new one. ErrNotFound: there is no such replica.
func (p *Pool) SetNote(volume, replica meta.UUID, b []byte) error {
	return p.setNote(volume, replica, noteFile, b)
}

// Note returns what SetNote kept, nil if there is nothing.
func (p *Pool) Note(volume, replica meta.UUID) ([]byte, error) {
	return p.note(volume, replica, noteFile)
}

// SetReverting is SetNote for another note: that the volume is being put back to a snapshot, or was.
func (p *Pool) SetReverting(volume, replica meta.UUID, b []byte) error {
	return p.setNote(volume, replica, revertFile, b)
}

// Reverting returns what SetReverting kept, nil if there is nothing.
func (p *Pool) Reverting(volume, replica meta.UUID) ([]byte, error) {
	return p.note(volume, replica, revertFile)
}

func (p *Pool) setNote(volume, replica meta.UUID, name string, b []byte) error {
	if len(b) > MaxNote {
		return fmt.Errorf("%w: a note of %d bytes, at most %d", ErrInvalid, len(b), MaxNote)
	}
	dir := p.path(replicasDir, key{volume, replica}.dirName())
	next := filepath.Join(dir, name+".new")
	f, err := os.Create(next)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: replica %x of volume %x", ErrNotFound, replica, volume)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return noSpace(err)
	}
	if err := os.Rename(next, filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func (p *Pool) note(volume, replica meta.UUID, name string) ([]byte, error) {
	f, err := os.Open(p.path(replicasDir, key{volume, replica}.dirName(), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxNote))
}

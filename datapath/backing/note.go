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

// noteFile is in a replica's directory; FORMAT.md of package meta tells of it.
const noteFile = "note"

// MaxNote is the longest note, in bytes.
const MaxNote = 512 << 10

// SetNote keeps b beside a replica, for whoever has to find out later what it was a replica of. Nothing here reads it. It is
// stable on nil; after a crash it is the old one or the new one. ErrNotFound: there is no such replica.
func (p *Pool) SetNote(volume, replica meta.UUID, b []byte) error {
	if len(b) > MaxNote {
		return fmt.Errorf("%w: a note of %d bytes, at most %d", ErrInvalid, len(b), MaxNote)
	}
	dir := p.path(replicasDir, key{volume, replica}.dirName())
	next := filepath.Join(dir, noteFile+".new")
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
	if err := os.Rename(next, filepath.Join(dir, noteFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// Note returns what SetNote kept, nil if there is nothing.
func (p *Pool) Note(volume, replica meta.UUID) ([]byte, error) {
	f, err := os.Open(p.path(replicasDir, key{volume, replica}.dirName(), noteFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxNote))
}

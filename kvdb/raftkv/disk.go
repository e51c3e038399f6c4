package raftkv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"golang.org/x/sys/unix"
)

// disk is what raft stands on, all of it in Options.Dir:
//
//	LOCK          held by the process that uses the directory
//	member.json   the identity
//	log/          raft-wal: the log and, in wal-meta.db, terms and votes
//	snapshots/    raft's file store: the last two snapshots
type disk struct {
	log       *wal.WAL
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	meta      *metadb.BoltMetaDB
	lock      *os.File
}

// segmentSize is what each file of the log takes up from the start, in bytes.
const segmentSize = 16 << 20

func openDisk(o Options) (_ *disk, err error) {
	d := &disk{meta: &metadb.BoltMetaDB{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	lg := newHCLog(o.Logger)
	if d.snapshots, err = raft.NewFileSnapshotStoreWithLogger(o.Dir, 2, lg); err != nil {
		return nil, fmt.Errorf("raftkv: open snapshots: %w", err)
	}
	dir := filepath.Join(o.Dir, "log")
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("raftkv: make log directory: %w", err)
	}
	d.log, err = wal.Open(dir, wal.WithSegmentSize(segmentSize), wal.WithLogger(lg), wal.WithMetaStore(d.meta))
	if err != nil {
		return nil, fmt.Errorf("raftkv: open log: %w", err)
	}
	d.stable = voteStore{d.log}
	return d, nil
}

// lockDir fails at once if another process uses dir; the databases in it would wait without a word.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("raftkv: lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("raftkv: %s is in use by another process: %w", dir, err), f.Close())
	}
	return f, nil
}

// close closes what is open. raft-wal leaves its meta store open, so that is closed here.
func (d *disk) close() error {
	var err error
	if d.log != nil {
		err = errors.Join(d.log.Close(), d.meta.Close())
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

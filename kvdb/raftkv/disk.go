package raftkv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// disk is what raft stands on, all of it in Options.Dir:
//
//	LOCK          held by the process that uses the directory
//	member.json   the identity
//	raft.db       the log, and terms and votes
//	snapshots/    raft's file store: the last two snapshots
type disk struct {
	log       raft.LogStore    // with the latest entries in memory
	stable    raft.StableStore // with votes in one piece
	snapshots raft.SnapshotStore
	file      *logStore
	lock      *os.File
}

// cachedEntries are kept in memory for the followers, who are rarely further behind.
const cachedEntries = 256

func openDisk(o Options) (_ *disk, err error) {
	d := &disk{}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	if d.snapshots, err = raft.NewFileSnapshotStoreWithLogger(o.Dir, 2, newHCLog(o.Logger)); err != nil {
		return nil, fmt.Errorf("raftkv: open snapshots: %w", err)
	}
	if d.file, err = openLogStore(filepath.Join(o.Dir, "raft.db")); err != nil {
		return nil, err
	}
	if d.log, err = raft.NewLogCache(cachedEntries, d.file); err != nil {
		return nil, fmt.Errorf("raftkv: cache the log: %w", err)
	}
	d.stable = voteStore{d.file}
	return d, syncDir(o.Dir)
}

// lockDir fails at once if another process uses dir.
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

// close closes what is open.
func (d *disk) close() error {
	var err error
	if d.file != nil {
		err = d.file.close()
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

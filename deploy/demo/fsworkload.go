package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// fsWorkload is a database on XFS on the block device.
type fsWorkload struct {
	db database

	work    string // directory of the demo
	clients int
	ledger  *ledger
	path    string    // of the ledger
	undo    *lab.Undo // what was started later is ended before

	follower *follower // what makes the device, nil if the path is one

	dev, mnt string // while open
	load     *load  // while writing
}

func newFSWorkload(app kind, work string, f *follower, u *lab.Undo) (*fsWorkload, error) {
	db, err := app.make(work)
	if err != nil {
		return nil, err
	}
	w := &fsWorkload{db: db, work: work, clients: 4, path: filepath.Join(work, "ledger"), undo: u, follower: f}
	// Taken back when the daemons are gone already: nothing hangs on a device any more, it fails.
	u.Add("mounts", func() error {
		ctx := context.Background()
		return errors.Join(w.db.buried(ctx), release(ctx, work))
	})
	w.ledger, err = newLedger(w.path)
	return w, err
}

func (w *fsWorkload) probe(_ context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(aligned(4096), 0)
	return err
}

// aligned returns a buffer that O_DIRECT takes.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&b[0]))%4096)
	return b[skip : skip+n : skip+n]
}

func (w *fsWorkload) open(ctx context.Context, site, path string, first bool) error {
	if w.follower != nil {
		var err error
		if path, err = w.follower.open(ctx, path); err != nil {
			return err
		}
	}
	if first {
		if err := mkfs(ctx, path); err != nil {
			return err
		}
	}
	mnt := filepath.Join(w.work, "mnt-"+site)
	if err := mount(ctx, path, mnt); err != nil {
		return err
	}
	w.dev, w.mnt = path, mnt
	w.undo.Add("database", func() error { return w.db.kill(w.load) })
	if err := w.db.start(ctx, mnt, first); err != nil || !first {
		return err
	}
	_, err := w.db.sql(ctx, schema)
	return err
}

func (w *fsWorkload) write(ctx context.Context) error {
	w.load = startLoad(ctx, w.db, w.ledger, w.clients)
	return nil
}

func (w *fsWorkload) confirmed() int { return w.ledger.len() }

func (w *fsWorkload) kill() error { return w.db.kill(w.load) }

func (w *fsWorkload) mourn(ctx context.Context, dir string) error {
	if err := w.load.wait(); err == nil {
		return errors.New("the clients did not notice that the site died")
	}
	w.load = nil
	return errors.Join(w.db.buried(ctx), release(ctx, dir))
}

func (w *fsWorkload) stop() error {
	if w.load == nil {
		return nil
	}
	w.load.stop()
	err := w.load.wait()
	w.load = nil
	return err
}

func (w *fsWorkload) check(ctx context.Context) (comparison, error) {
	there, err := table(ctx, w.db)
	if err != nil {
		return comparison{}, err
	}
	confirmed, err := readLedger(w.path)
	if err != nil {
		return comparison{}, err
	}
	c := compare(confirmed, there)
	return c, w.db.check(ctx)
}

func (w *fsWorkload) close(ctx context.Context) error {
	if err := w.db.stop(); err != nil {
		return err
	}
	if err := unmount(ctx, w.mnt); err != nil {
		return err
	}
	if _, err := lab.Run(ctx, "xfs_repair", "-n", w.dev); err != nil {
		return err
	}
	if w.follower != nil {
		return w.follower.close(ctx)
	}
	return nil
}

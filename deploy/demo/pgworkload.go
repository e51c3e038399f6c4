package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// pgWorkload is PostgreSQL on XFS on the block device.
type pgWorkload struct {
	work    string // directory of the demo
	clients int
	ledger  *ledger
	path    string    // of the ledger
	undo    *lab.Undo // what was started later is ended before

	follower *follower // what makes the device, nil if the path is one

	dev, mnt string // while open
	pg       *postgres
	load     *load // while writing
}

func newPGWorkload(work string, f *follower, u *lab.Undo) (*pgWorkload, error) {
	w := &pgWorkload{work: work, clients: 4, path: filepath.Join(work, "ledger"), undo: u, follower: f}
	// Taken back when the daemons are gone already: nothing hangs on a device any more, it fails.
	u.Add("mounts", func() error {
		ctx := context.Background()
		if w.pg == nil {
			return release(ctx, work)
		}
		return errors.Join(w.pg.buried(ctx), release(ctx, work))
	})
	var err error
	w.ledger, err = newLedger(w.path)
	return w, err
}

func (w *pgWorkload) probe(_ context.Context, path string) error {
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

func (w *pgWorkload) open(ctx context.Context, site, path string, first bool) error {
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
	pg, err := newPostgres(mnt, w.work)
	if err != nil {
		return err
	}
	w.pg = pg
	w.undo.Add("PostgreSQL", pg.kill)
	if first {
		if err := pg.initialise(ctx); err != nil {
			return err
		}
	}
	if err := pg.start(ctx); err != nil {
		return err
	}
	if first {
		_, err = pg.sql(ctx, schema)
	}
	return err
}

func (w *pgWorkload) write(ctx context.Context) error {
	w.load = startLoad(ctx, w.pg, w.ledger, w.clients)
	return nil
}

func (w *pgWorkload) confirmed() int { return w.ledger.len() }

func (w *pgWorkload) kill() error { return w.pg.kill() }

func (w *pgWorkload) mourn(ctx context.Context, dir string) error {
	if err := w.load.wait(); err == nil {
		return errors.New("the clients did not notice that the site died")
	}
	w.load = nil
	return errors.Join(w.pg.buried(ctx), release(ctx, dir))
}

func (w *pgWorkload) stop() error {
	if w.load == nil {
		return nil
	}
	w.load.stop()
	err := w.load.wait()
	w.load = nil
	return err
}

func (w *pgWorkload) check(ctx context.Context) (comparison, error) {
	there, err := table(ctx, w.pg)
	if err != nil {
		return comparison{}, err
	}
	confirmed, err := readLedger(w.path)
	if err != nil {
		return comparison{}, err
	}
	c := compare(confirmed, there)
	if err := w.pg.check(ctx); err != nil {
		return c, fmt.Errorf("pg_amcheck: %w", err)
	}
	return c, nil
}

func (w *pgWorkload) close(ctx context.Context) error {
	if err := w.pg.stop(); err != nil {
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

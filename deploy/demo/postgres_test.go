package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestPostgresKilled plays the demo's application on a plain directory: what is confirmed before a SIGKILL is there after it.
func TestPostgresKilled(t *testing.T) {
	if _, err := pgBin(); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and Debian's postgresql")
	}
	work := t.TempDir()
	if err := os.Chmod(filepath.Dir(work), 0o755); err != nil { // user postgres has to get through
		t.Fatal(err)
	}
	mnt := filepath.Join(work, "mnt")
	for _, dir := range []string{work, mnt, filepath.Join(work, "log")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	lab.AdoptOrphans()
	db, err := newPostgres(work)
	if err != nil {
		t.Fatal(err)
	}
	pg := db.(*postgres)
	t.Cleanup(func() {
		if err := pg.kill(nil); err != nil {
			t.Error(err)
		}
		if err := pg.buried(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	if err := pg.start(ctx, mnt, true); err != nil {
		t.Fatal(err)
	}
	if _, err := pg.sql(ctx, schema); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(work, "ledger")
	l, err := newLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	load := startLoad(ctx, pg, l, 4)
	if err := lab.Until(ctx, "100 transactions", time.Minute, time.Millisecond, func() (bool, error) {
		return l.len() >= 100, pg.proc.Died()
	}); err != nil {
		t.Fatal(err)
	}
	if err := pg.kill(nil); err != nil {
		t.Fatal(err)
	}
	if err := pg.buried(ctx); err != nil {
		t.Fatal(err)
	}
	if err := load.wait(); err == nil {
		t.Error("no client noticed that the server was killed")
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if err := pg.start(ctx, mnt, false); err != nil {
		t.Fatal(err)
	}
	there, err := table(ctx, pg)
	if err != nil {
		t.Fatal(err)
	}
	confirmed, err := readLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	c := compare(confirmed, there)
	if !c.ok() || c.confirmed < 100 || c.extra > 4 {
		t.Errorf("after the kill: %v", c)
	}
	if err := pg.check(ctx); err != nil {
		t.Error(err)
	}
	if _, err := pg.sql(ctx, "DELETE FROM confirmed WHERE id = (SELECT min(id) FROM confirmed)"); err != nil {
		t.Fatal(err)
	}
	if _, err := table(ctx, pg); err == nil {
		t.Error("a row without its counter was not noticed")
	}
	if _, err := pg.sql(ctx, "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 1"); err != nil {
		t.Fatal(err)
	}
	if err := pg.check(ctx); err == nil {
		t.Error("half a transaction of pgbench was not noticed")
	}
	if err := pg.stop(); err != nil {
		t.Error(err)
	}
}

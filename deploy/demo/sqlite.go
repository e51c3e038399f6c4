package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// sqlite is SQLite with a rollback journal: a commit is a number of fsyncs, one
// after the other, and nothing else goes on meanwhile. It has no server: its
// clients are the database, and whoever opens it after a crash rolls back.
type sqlite struct {
	file string // while it is up
}

const sqliteShell = "/usr/bin/sqlite3"

func missingSQLite() error {
	if _, err := os.Stat(sqliteShell); err != nil {
		return errors.New("no SQLite (Debian package sqlite3)")
	}
	return nil
}

func newSQLite(string) (database, error) { return &sqlite{}, nil }

func (s *sqlite) start(_ context.Context, mnt string, _ bool) error {
	s.file = filepath.Join(mnt, "sqlite.db")
	return nil
}

func (s *sqlite) shell(more ...string) []string {
	// EXTRA: the directory, too, is made stable when the journal is removed, which is what commits.
	return append([]string{sqliteShell, "-batch", "-bail", "-cmd", ".timeout 60000", "-cmd", "PRAGMA synchronous=EXTRA", s.file}, more...)
}

func (s *sqlite) client() *exec.Cmd {
	argv := s.shell()
	return exec.Command(argv[0], argv[1:]...)
}

func (s *sqlite) print(text string) string { return ".print " + text }

func (s *sqlite) beside() *exec.Cmd { return nil }

func (s *sqlite) sql(ctx context.Context, statements string) (string, error) {
	return lab.Run(ctx, s.shell(statements)...)
}

func (s *sqlite) check(ctx context.Context) error {
	return checked(ctx, s, "PRAGMA integrity_check", "ok")
}

func (s *sqlite) kill(clients *load) error { return clients.signal(syscall.SIGKILL) }

// buried has nothing to wait for: who waits for the clients has waited for all.
func (s *sqlite) buried(context.Context) error { return nil }

func (s *sqlite) stop() error { return nil }

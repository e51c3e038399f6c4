package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// pgBin returns the directory of the newest PostgreSQL server that Debian installed.
func pgBin() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return "", errors.New("no PostgreSQL (Debian package postgresql)")
	}
	sort.Slice(found, func(i, j int) bool { return pgVersion(found[i]) < pgVersion(found[j]) })
	return filepath.Dir(found[len(found)-1]), nil
}

func pgVersion(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

// postgres is PostgreSQL. Beside the clients with the ledger pgbench runs its TPC-B-like transactions.
type postgres struct {
	bin    string              // directory of its programs
	cred   *syscall.Credential // of user postgres
	socket string              // directory of its socket, off the volume
	log    string

	data string       // data directory, on the volume, once it was started
	proc *lab.Process // of the last start

	backends []int // pids, when it was killed
}

func missingPostgres() error {
	_, err := pgBin()
	return err
}

// newPostgres returns a server that does not run yet.
func newPostgres(work string) (database, error) {
	bin, err := pgBin()
	if err != nil {
		return nil, err
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	socket := filepath.Join(work, "pgsocket")
	if err := os.MkdirAll(socket, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chown(socket, uid, gid); err != nil {
		return nil, err
	}
	return &postgres{
		bin: bin, cred: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
		socket: socket, log: filepath.Join(work, "log", "postgres.log"),
	}, nil
}

// initialise makes the data directory, with PostgreSQL's own page checksums.
func (pg *postgres) initialise(ctx context.Context) error {
	if err := os.Mkdir(pg.data, 0o700); err != nil {
		return err
	}
	if err := os.Chown(pg.data, int(pg.cred.Uid), int(pg.cred.Gid)); err != nil {
		return err
	}
	_, err := lab.RunAs(ctx, pg.cred, filepath.Join(pg.bin, "initdb"), "-D", pg.data, "-U", "postgres",
		"--auth=trust", "--data-checksums", "--locale=C", "--encoding=UTF8")
	return err
}

func (pg *postgres) start(ctx context.Context, mnt string, first bool) error {
	pg.data = filepath.Join(mnt, "pgdata")
	if first {
		if err := pg.initialise(ctx); err != nil {
			return err
		}
	}
	if err := pg.serve(ctx); err != nil || !first {
		return err
	}
	_, err := lab.Run(ctx, pg.command("pgbench", "--initialize", "--quiet", "--scale=2", "postgres")...)
	return err
}

// serve starts the server and waits until it answers: after a crash it replays its log first.
func (pg *postgres) serve(ctx context.Context) error {
	p, err := lab.StartProcess("postgres", pg.log, pg.cred, filepath.Join(pg.bin, "postgres"), "-D", pg.data,
		"-c", "listen_addresses=", "-c", "unix_socket_directories="+pg.socket,
		"-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "full_page_writes=on",
		// Frequent checkpoints: more kinds of writes are in flight when the site dies.
		"-c", "checkpoint_timeout=30s", "-c", "shared_buffers=64MB", "-c", "max_wal_size=256MB")
	if err != nil {
		return err
	}
	pg.proc = p
	return lab.Until(ctx, "PostgreSQL accepts connections", 60*time.Second, 100*time.Millisecond, func() (bool, error) {
		if err := p.Died(); err != nil {
			return false, lab.Final(err)
		}
		_, err := lab.Run(ctx, filepath.Join(pg.bin, "pg_isready"), "-q", "-h", pg.socket)
		return err == nil, err
	})
}

// stop shuts the server down in order.
func (pg *postgres) stop() error {
	if pg.proc == nil {
		return nil
	}
	return pg.proc.Stop(syscall.SIGINT, 60*time.Second) // SIGINT: "fast", ends sessions
}

// kill ends the server and all its backends at once, as a power cut would. They are gone when buried returns: those that
// wait for the device cannot die before it answers or fails.
func (pg *postgres) kill(*load) error {
	if pg.proc == nil || !pg.proc.Running() {
		return nil
	}
	pid := pg.proc.PID()
	pg.backends = childrenOf(pid)
	err := syscall.Kill(pid, syscall.SIGKILL)
	for _, b := range pg.backends {
		_ = syscall.Kill(b, syscall.SIGKILL) // it may have ended with its parent
	}
	return err
}

// buried waits until no process of a killed server is left.
func (pg *postgres) buried(ctx context.Context) error {
	if pg.proc == nil {
		return nil
	}
	return lab.Until(ctx, "PostgreSQL's processes are gone", 30*time.Second, 50*time.Millisecond, func() (bool, error) {
		for _, pid := range pg.backends {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // it is the demo's child by now, see lab.AdoptOrphans
			if alive(pid) {
				return false, fmt.Errorf("backend %d still runs", pid)
			}
		}
		return !pg.proc.Running(), nil
	})
}

// command returns the arguments to run one of PostgreSQL's client programs.
func (pg *postgres) command(program string, more ...string) []string {
	return append([]string{filepath.Join(pg.bin, program), "-h", pg.socket, "-U", "postgres"}, more...)
}

func (pg *postgres) psql(more ...string) []string {
	return pg.command("psql", append([]string{"-X", "-q", "-At", "-v", "ON_ERROR_STOP=1"}, more...)...)
}

func (pg *postgres) client() *exec.Cmd {
	argv := pg.psql()
	return exec.Command(argv[0], argv[1:]...)
}

func (pg *postgres) print(text string) string { return `\echo ` + text }

func (pg *postgres) beside() *exec.Cmd {
	argv := pg.command("pgbench", "--client=2", "--time=86400", "--no-vacuum", "postgres")
	return exec.Command(argv[0], argv[1:]...)
}

func (pg *postgres) sql(ctx context.Context, statements string) (string, error) {
	return lab.Run(ctx, pg.psql("-c", statements)...)
}

// check lets PostgreSQL verify its own tables and indexes. In those of pgbench each transaction has added the same to four.
func (pg *postgres) check(ctx context.Context) error {
	if err := checked(ctx, pg, `SELECT count(DISTINCT sum), count(sum) FROM (SELECT sum(abalance) FROM pgbench_accounts UNION ALL SELECT sum(tbalance) FROM pgbench_tellers
		UNION ALL SELECT sum(bbalance) FROM pgbench_branches UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history) AS four`, "1|4"); err != nil {
		return err
	}
	if _, err := pg.sql(ctx, "CREATE EXTENSION IF NOT EXISTS amcheck"); err != nil {
		return err
	}
	_, err := lab.Run(ctx, pg.command("pg_amcheck", "--heapallindexed", "postgres")...)
	return err
}

// childrenOf returns the direct children of a process.
func childrenOf(pid int) []int {
	var children []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		data, _ := os.ReadFile(t) // a thread may have ended meanwhile
		for _, f := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(f); err == nil {
				children = append(children, n)
			}
		}
	}
	return children
}

// alive reports whether a process exists and is no zombie.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return !strings.HasPrefix(rest, "Z")
}

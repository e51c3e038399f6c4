package main

import (
	"bufio"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// load is a number of psql clients that write transactions as fast as they are
// confirmed, and put each confirmed one into the ledger.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	errs []error
}

// nextID numbers the transactions of all loads of the demo.
var nextID atomic.Int64

const schema = `
CREATE TABLE confirmed (id bigint PRIMARY KEY, client int NOT NULL, payload text NOT NULL);
CREATE TABLE counters (client int PRIMARY KEY, n bigint NOT NULL);
CREATE INDEX ON confirmed (client, id);`

// startLoad starts the clients against the server.
func startLoad(ctx context.Context, pg *postgres, l *ledger, clients int) *load {
	ctx, cancel := context.WithCancel(ctx)
	w := &load{cancel: cancel}
	for c := range clients {
		w.wg.Go(func() {
			if err := client(ctx, pg, l, c); err != nil && ctx.Err() == nil {
				w.mu.Lock()
				w.errs = append(w.errs, fmt.Errorf("client %d: %w", c, err))
				w.mu.Unlock()
			}
		})
	}
	return w
}

// stop ends the clients, each after the transaction that it waits for.
func (w *load) stop() {
	w.cancel()
	w.wg.Wait()
}

// wait returns when every client ended by itself, with what they saw: a dead site.
func (w *load) wait() error {
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.errs...)
}

// client drives one psql. psql prints the marker after COMMIT only when COMMIT succeeded: ON_ERROR_STOP ends it at the first
// error, and it never connects again.
func client(ctx context.Context, pg *postgres, l *ledger, n int) error {
	cmd := exec.Command(filepath.Join(pg.bin, "psql"), "-h", pg.socket, "-U", "postgres", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var errOut strings.Builder
	cmd.Stderr = &errOut
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = transactions(ctx, in, bufio.NewReader(out), l, n)
	in.Close()
	if werr := cmd.Wait(); err != nil {
		return errors.Join(err, werr, errors.New(strings.TrimSpace(errOut.String())))
	}
	return nil
}

func transactions(ctx context.Context, in io.Writer, out *bufio.Reader, l *ledger, client int) error {
	for ctx.Err() == nil {
		id := nextID.Add(1)
		p := payload(id)
		if _, err := fmt.Fprintf(in, `BEGIN;
INSERT INTO confirmed VALUES (%d, %d, '%s');
INSERT INTO counters VALUES (%d, 1) ON CONFLICT (client) DO UPDATE SET n = counters.n + 1;
COMMIT;
\echo confirmed %d
`, id, client, p, client, id); err != nil {
			return err
		}
		line, err := out.ReadString('\n')
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("confirmed %d\n", id); line != want {
			return fmt.Errorf("psql answered %q instead of %q", line, want)
		}
		sum := md5.Sum([]byte(p))
		if err := l.confirm(id, hex.EncodeToString(sum[:])); err != nil {
			return err
		}
	}
	return nil
}

// table returns what the server has: id and fingerprint of every row. Each client's counter must agree with its rows.
func table(ctx context.Context, pg *postgres) (map[int64]string, error) {
	torn, err := pg.sql(ctx, `SELECT client, n, (SELECT count(*) FROM confirmed f WHERE f.client = c.client) FROM counters c
		WHERE n <> (SELECT count(*) FROM confirmed f WHERE f.client = c.client)`)
	if err != nil {
		return nil, err
	}
	if torn != "" {
		return nil, fmt.Errorf("a transaction is there by half: client|counter|rows %s", torn)
	}
	rows, err := pg.sql(ctx, `SELECT id || ' ' || md5(payload) FROM confirmed`)
	if err != nil {
		return nil, err
	}
	return readPairs(strings.NewReader(rows))
}

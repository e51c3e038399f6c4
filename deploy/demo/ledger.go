package main

import (
	"bufio"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
)

// ledger is the client's own record of what was confirmed to it, on a file
// system that has nothing to do with the volume. Safe for concurrent use.
type ledger struct {
	f *os.File

	mu   sync.Mutex
	cond *sync.Cond
	seen map[int64]string // id -> fingerprint of its content
	buf  strings.Builder  // lines not yet handed to the file
	gen  int64            // of buf
	done int64            // newest gen that is stable
	busy bool             // somebody is at the file
	err  error
}

func newLedger(path string) (*ledger, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	l := &ledger{f: f, seen: map[int64]string{}}
	l.cond = sync.NewCond(&l.mu)
	return l, nil
}

// confirm records that transaction id was confirmed. It returns when the record is on disk; concurrent calls share one fsync.
func (l *ledger) confirm(id int64, fingerprint string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[id] = fingerprint
	fmt.Fprintf(&l.buf, "%d %s\n", id, fingerprint)
	mine := l.gen
	for l.err == nil && l.done <= mine {
		if l.busy {
			l.cond.Wait()
			continue
		}
		l.flushLocked()
	}
	return l.err
}

// flushLocked writes what is in buf and makes it stable. It gives the lock away meanwhile.
func (l *ledger) flushLocked() {
	text := l.buf.String()
	l.buf.Reset()
	l.gen++
	upTo := l.gen
	l.busy = true
	l.mu.Unlock()
	_, err := io.WriteString(l.f, text)
	if err == nil {
		err = l.f.Sync()
	}
	l.mu.Lock()
	l.busy = false
	l.done = upTo
	if err != nil {
		l.err = fmt.Errorf("ledger: %w", err)
	}
	l.cond.Broadcast()
}

func (l *ledger) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.seen)
}

func (l *ledger) close() error { return l.f.Close() }

// readLedger reads the file back: what counts is on disk, not in the writer's memory.
func readLedger(path string) (map[int64]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readPairs(f)
}

// readPairs reads lines of an id and a fingerprint.
func readPairs(r io.Reader) (map[int64]string, error) {
	pairs := map[int64]string{}
	s := bufio.NewScanner(r)
	for s.Scan() {
		first, fingerprint, ok := strings.Cut(s.Text(), " ")
		id, err := strconv.ParseInt(first, 10, 64)
		if err != nil || !ok {
			return nil, fmt.Errorf("not an id and a fingerprint: %.80q", s.Text())
		}
		pairs[id] = fingerprint
	}
	return pairs, s.Err()
}

// comparison is what a ledger says about what is on the volume.
type comparison struct {
	confirmed int     // lines of the ledger
	lost      []int64 // confirmed but absent
	damaged   []int64 // confirmed, and there with other content
	extra     int     // there, never confirmed: they were in flight when the site died
}

func (c comparison) ok() bool { return len(c.lost) == 0 && len(c.damaged) == 0 }

func (c comparison) String() string {
	s := fmt.Sprintf("%d confirmed, %d lost, %d damaged, %d more that were on their way", c.confirmed, len(c.lost), len(c.damaged), c.extra)
	if !c.ok() {
		s += fmt.Sprintf(" (first lost %v, first damaged %v)", c.lost[:min(5, len(c.lost))], c.damaged[:min(5, len(c.damaged))])
	}
	return s
}

// compare holds the ledger beside what is there.
func compare(confirmed, there map[int64]string) comparison {
	c := comparison{confirmed: len(confirmed)}
	for id, want := range confirmed {
		switch got, ok := there[id]; {
		case !ok:
			c.lost = append(c.lost, id)
		case got != want:
			c.damaged = append(c.damaged, id)
		}
	}
	for id := range there {
		if _, ok := confirmed[id]; !ok {
			c.extra++
		}
	}
	return c
}

// fingerprint tells contents apart in the ledger.
func fingerprint(content string) string {
	sum := md5.Sum([]byte(content))
	return hex.EncodeToString(sum[:])
}

// payload is the content of transaction id: it follows from the id, and no two are alike.
func payload(id int64) string {
	h := fnv.New64a()
	var b strings.Builder
	for b.Len() < 600 {
		fmt.Fprintf(h, "%d-", id)
		fmt.Fprintf(&b, "%016x", h.Sum64())
	}
	return b.String()
}

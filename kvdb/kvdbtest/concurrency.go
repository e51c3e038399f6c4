package kvdbtest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/tandem-storage/tandem/kvdb"
)

// parallel runs n functions at once, each with a client of its own, and fails the test with their errors.
func (e *env) parallel(n int, f func(i int, s kvdb.Store) error) {
	e.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		s := open(e.T, e.h)
		wg.Go(func() { errs[i] = f(i, s) })
	}
	wg.Wait()
	e.ok(errors.Join(errs...))
}

// Every change has a revision of its own, and a client's revisions grow.
func testRevisionsGrow(e *env) {
	const clients, writes = 4, 25
	revs := make([][]kvdb.Revision, clients)
	e.parallel(clients, func(i int, s kvdb.Store) error {
		for n := range writes {
			rev, err := kvdb.Put(e.ctx, s, e.key("%d", n%3), []byte(strconv.Itoa(i)))
			if err != nil {
				return err
			}
			revs[i] = append(revs[i], rev)
		}
		return nil
	})
	seen := make(map[kvdb.Revision]int)
	for i, mine := range revs {
		last := kvdb.Revision(0)
		for _, rev := range mine {
			if rev <= last {
				e.Errorf("client %d: revision %d after %d", i, rev, last)
			}
			if other, twice := seen[rev]; twice {
				e.Errorf("revision %d was given to clients %d and %d", rev, other, i)
			}
			seen[rev], last = i, rev
		}
	}
}

// What one client has written, every other sees from then on.
func testReadsSeeCompletedWrites(e *env) {
	const rounds = 60
	stores := []kvdb.Store{e.s, open(e.T, e.h), open(e.T, e.h)}
	k := e.key("k")
	for n := range rounds {
		want := strconv.Itoa(n)
		rev, err := kvdb.Put(e.ctx, stores[n%len(stores)], k, []byte(want))
		e.ok(err)
		reader := stores[(n+1)%len(stores)]
		kv, err := reader.Get(e.ctx, k)
		e.ok(err)
		if string(kv.Value) != want {
			e.Fatalf("round %d: another client reads %q", n, kv.Value)
		}
		_, listed, err := reader.List(e.ctx, k)
		e.ok(err)
		if listed < rev {
			e.Fatalf("round %d: written at %d, another client lists at %d", n, rev, listed)
		}
	}
}

// Concurrent compare-and-swaps lose no increment and apply none twice.
func testIncrements(e *env) {
	const clients, each = 8, 12
	k := e.key("counter")
	e.parallel(clients, func(_ int, s kvdb.Store) error {
		for range each {
			if err := increment(e.ctx, s, k); err != nil {
				return err
			}
		}
		return nil
	})
	e.wantValue(k, strconv.Itoa(clients*each))
}

func increment(ctx context.Context, s kvdb.Store, key string) error {
	for {
		count := 0
		kv, err := s.Get(ctx, key)
		switch {
		case errors.Is(err, kvdb.ErrNotFound):
		case err != nil:
			return err
		default:
			if count, err = strconv.Atoi(string(kv.Value)); err != nil {
				return fmt.Errorf("counter: %w", err)
			}
		}
		_, err = kvdb.CompareAndSwap(ctx, s, key, kv.Mod, []byte(strconv.Itoa(count+1)))
		if !errors.Is(err, kvdb.ErrConflict) {
			return err
		}
	}
}

func testContext(e *env) {
	k := e.key("k")
	e.put(k, "before")
	ended, cancel := context.WithCancel(e.ctx)
	cancel()
	for name, call := range map[string]func() error{
		"get":   func() error { _, err := e.s.Get(ended, k); return err },
		"list":  func() error { _, _, err := e.s.List(ended, k); return err },
		"txn":   func() error { _, err := kvdb.Put(ended, e.s, k, []byte("after")); return err },
		"grant": func() error { _, err := e.s.Grant(ended, kvdb.MinTTL); return err },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			e.Errorf("%s with an ended context: %v, want context.Canceled", name, err)
		}
	}
	e.wantValue(k, "before")
}

func testClose(e *env) {
	k := e.key("k")
	e.put(k, "v")
	s := e.h.Open(e.T)
	if _, err := s.Get(e.ctx, k); err != nil {
		e.Fatal(err)
	}
	for range 2 {
		e.ok(s.Close())
	}
	for name, call := range map[string]func() error{
		"get":   func() error { _, err := s.Get(e.ctx, k); return err },
		"list":  func() error { _, _, err := s.List(e.ctx, k); return err },
		"txn":   func() error { _, err := kvdb.Put(e.ctx, s, k, []byte("after")); return err },
		"grant": func() error { _, err := s.Grant(e.ctx, kvdb.MinTTL); return err },
		"watch": func() error { return (<-s.Watch(e.ctx, k, 0)).Err },
	} {
		if err := call(); !errors.Is(err, kvdb.ErrClosed) {
			e.Errorf("%s of a closed store: %v, want ErrClosed", name, err)
		}
	}
	e.wantValue(k, "v")
}

package raftkv

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// scripted is a router and backend that fails each request as told, in turn, and then serves.
type scripted struct {
	fail  []error // by attempt; nil: serve
	calls int
}

func (s *scripted) attempt() error {
	s.calls++
	if s.calls <= len(s.fail) {
		return s.fail[s.calls-1]
	}
	return nil
}

func (s *scripted) route(context.Context) (backend, error) { return s, nil }
func (s *scripted) failed(backend)                         {}
func (s *scripted) watch(context.Context, <-chan struct{}, string, kvdb.Revision) <-chan kvdb.Event {
	return nil
}

func (s *scripted) txn(context.Context, kvdb.Txn) (kvdb.TxnResult, error) {
	return kvdb.TxnResult{Succeeded: true, Gets: []*kvdb.KV{{Key: "k"}}}, s.attempt()
}

func (s *scripted) list(context.Context, string) ([]kvdb.KV, kvdb.Revision, error) {
	return nil, 1, s.attempt()
}

func (s *scripted) grant(context.Context, kvdb.LeaseID, time.Duration) error { return s.attempt() }
func (s *scripted) keepAlive(context.Context, kvdb.LeaseID) error            { return s.attempt() }
func (s *scripted) revoke(context.Context, kvdb.LeaseID) error               { return s.attempt() }

// What may have taken effect is not sent again; what was refused, and what changes nothing, is.
func TestWhatIsSentAgain(t *testing.T) {
	unknown := fmt.Errorf("%w: no answer", kvdb.ErrUnavailable)
	odd := errors.New("something else, so unknown as well")
	refused := fmt.Errorf("%w: elsewhere", kvdb.ErrNoLeader)
	put := func(s *store) error { _, err := kvdb.Put(context.Background(), s, "k", nil); return err }
	get := func(s *store) error { _, err := s.Get(context.Background(), "k"); return err }
	list := func(s *store) error { _, _, err := s.List(context.Background(), "k"); return err }
	grant := func(s *store) error {
		l, err := s.Grant(context.Background(), time.Minute)
		if err == nil {
			err = l.Revoke(context.Background())
		}
		return err
	}
	for _, c := range []struct {
		name  string
		call  func(*store) error
		fail  []error
		calls int
		err   error
	}{
		{"write, unknown", put, []error{unknown}, 1, kvdb.ErrUnavailable},
		{"write, odd", put, []error{odd}, 1, odd},
		{"write, refused, then served", put, []error{refused, refused}, 3, nil},
		{"write, refused, then unknown", put, []error{refused, unknown}, 2, kvdb.ErrUnavailable},
		{"write, invalid", put, []error{kvdb.ErrInvalid}, 1, kvdb.ErrInvalid},
		{"write, lease gone", put, []error{kvdb.ErrLeaseGone}, 1, kvdb.ErrLeaseGone},
		{"get, unknown", get, []error{unknown, refused}, 3, nil},
		{"list, unknown", list, []error{unknown, unknown}, 3, nil},
		{"get, attempt timed out", get, []error{context.DeadlineExceeded}, 2, nil},
		{"grant, unknown", grant, []error{unknown}, 3, nil}, // and its revocation
		{"revocation, unknown", grant, []error{nil, unknown}, 2, kvdb.ErrUnavailable},
	} {
		synctest.Test(t, func(t *testing.T) {
			script := &scripted{fail: c.fail}
			s := newStore(script, 10*time.Second)
			defer func() { _ = s.Close() }()
			err := c.call(s)
			if script.calls != c.calls || !errors.Is(err, c.err) {
				t.Errorf("%s: %d attempts, %v, want %d, %v", c.name, script.calls, err, c.calls, c.err)
			}
		})
	}
}

// Without anybody to serve it, a request ends with its time and says that nothing was changed.
func TestNobodyServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refusing := &scripted{fail: make([]error, 10_000)}
		for i := range refusing.fail {
			refusing.fail[i] = kvdb.ErrNoLeader
		}
		s := newStore(refusing, 10*time.Second)
		start := time.Now()
		_, err := kvdb.Put(t.Context(), s, "k", nil)
		if !errors.Is(err, kvdb.ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, kvdb.ErrUnavailable) {
			t.Errorf("%v, want ErrNoLeader and the deadline", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("gave up after %v, want the default of 10s", took)
		}
		if refusing.calls < 40 || refusing.calls > 60 {
			t.Errorf("%d attempts in 10s", refusing.calls)
		}
		time.AfterFunc(time.Second, func() { _ = s.Close() })
		if _, err := kvdb.Put(t.Context(), s, "k", nil); !errors.Is(err, kvdb.ErrClosed) {
			t.Errorf("closed while it waits: %v, want ErrClosed", err)
		}
		synctest.Wait()
	})
}

// Every read stands on an entry that was committed after it came.
func TestReadsCommitABarrier(t *testing.T) {
	c := newTestCluster(t, 1, nil)
	node := c.nodes[0]
	for name, read := range map[string]func() error{
		"get":  func() error { _, err := node.Get(t.Context(), "k"); return err },
		"list": func() error { _, _, err := node.List(t.Context(), "k"); return err },
	} {
		before := node.node().LastIndex()
		if err := read(); err != nil && !errors.Is(err, kvdb.ErrNotFound) {
			t.Fatal(err)
		}
		if after := node.node().LastIndex(); after == before {
			t.Errorf("%s was served without an entry of its own", name)
		}
	}
}

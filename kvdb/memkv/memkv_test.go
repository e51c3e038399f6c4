package memkv_test

import (
	"errors"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbtest"
	"github.com/tandem-storage/tandem/kvdb/memkv"
)

func TestSuite(t *testing.T) {
	kvdbtest.Run(t, func(*testing.T) kvdbtest.Harness {
		server := memkv.NewServer(memkv.Options{})
		return kvdbtest.Harness{
			Open:    func(testing.TB) kvdb.Store { return server.Open() },
			Compact: func(_ testing.TB, rev kvdb.Revision) { server.Compact(rev) },
		}
	})
}

// A client that is cut off fails its calls, keeps its leases until their time is
// up on the server's clock, and gets the changes that it missed when it is let back.
func TestCutOff(t *testing.T) {
	clock := memkv.NewManualClock(time.Unix(1_000_000, 0))
	server := memkv.NewServer(memkv.Options{Clock: clock})
	a, b := server.Open(), server.Open()
	ctx := t.Context()
	grant := func(ttl time.Duration) kvdb.Lease {
		l, err := a.Grant(ctx, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	put := func(s kvdb.Store, key string, l kvdb.LeaseID) {
		t.Helper()
		if _, err := kvdb.PutLeased(ctx, s, key, nil, l); err != nil {
			t.Fatal(err)
		}
	}
	exists := func(key string) bool {
		t.Helper()
		_, err := b.Get(ctx, key)
		if err != nil && !errors.Is(err, kvdb.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	short, long := grant(5*time.Second), grant(20*time.Second)
	put(a, "short", short.ID())
	put(a, "long", long.ID())
	clock.Advance(time.Hour) // it is reachable
	if !exists("short") || !exists("long") {
		t.Fatal("a reachable client's leases ended")
	}
	if want := clock.Now().Add(5 * time.Second); !short.Expires().Equal(want) {
		t.Errorf("expires at %v, want %v", short.Expires(), want)
	}

	_, rev, err := a.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	w := a.Watch(ctx, "", rev)
	a.SetReachable(false)
	if _, err := a.Get(ctx, "short"); !errors.Is(err, kvdb.ErrUnavailable) {
		t.Errorf("get while cut off: %v, want ErrUnavailable", err)
	}
	clock.Advance(5*time.Second - 1)
	if !exists("short") {
		t.Error("the lease ended early")
	}
	clock.Advance(1)
	if exists("short") || !exists("long") {
		t.Error("after 5s the lease of 5s should have ended, and no other")
	}
	<-short.Done()
	select {
	case e := <-w:
		t.Errorf("a client that is cut off has an event: %+v", e)
	case <-long.Done():
		t.Error("the longer lease is done")
	default:
	}
	a.SetReachable(true)
	if e := <-w; e.Type != kvdb.EventDelete || e.KV.Key != "short" {
		t.Errorf("missed event: %+v", e)
	}
	clock.Advance(time.Hour)
	if !exists("long") {
		t.Error("the lease ended though its client came back in time")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	clock.Advance(20 * time.Second)
	if exists("long") {
		t.Error("the lease of a closed client goes on")
	}
}

package kvdbtest

import (
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// ttl of the suite's leases. Real stores count it in real time.
const ttl = kvdb.MinTTL

func (e *env) grant(s kvdb.Store) kvdb.Lease {
	e.Helper()
	before := time.Now()
	l, err := s.Grant(e.ctx, ttl)
	e.ok(err)
	if l.ID() <= 0 {
		e.Fatalf("lease id %d", l.ID())
	}
	if at := l.Expires(); at.Before(before.Add(ttl)) || at.After(time.Now().Add(ttl+time.Second)) {
		e.Errorf("lease of %v expires in %v", ttl, time.Until(at))
	}
	return l
}

func (e *env) putLeased(key string, l kvdb.Lease) kvdb.Revision {
	e.Helper()
	rev, err := kvdb.PutLeased(e.ctx, e.s, key, []byte("leased"), l.ID())
	e.ok(err)
	if kv := e.wantValue(key, "leased"); kv.Lease != l.ID() {
		e.Fatalf("%s has lease %d, want %d", key, kv.Lease, l.ID())
	}
	return rev
}

func (e *env) wantDone(l kvdb.Lease) {
	e.Helper()
	select {
	case <-l.Done():
	case <-time.After(patience):
		e.Fatal("the lease does not end")
	}
}

func testLeaseKeptAlive(e *env) {
	l := e.grant(e.s)
	k := e.key("k")
	e.putLeased(k, l)
	select {
	case <-l.Done():
		e.Fatal("the lease ended though its store is there")
	case <-time.After(2 * ttl):
	}
	e.wantValue(k, "leased")
	if left := time.Until(l.Expires()); left <= 0 {
		e.Errorf("the lease should have ended %v ago", -left)
	}
	e.ok(l.Revoke(e.ctx))
}

// A closed store's leases end, not before they promised to, and take their keys along in one change.
func testLeaseExpires(e *env) {
	s := e.h.Open(e.T)
	l := e.grant(s)
	a, b, kept := e.key("a"), e.key("b"), e.key("kept")
	e.putLeased(b, l)
	start := e.putLeased(a, l)
	e.put(kept, "without a lease")
	c := e.s.Watch(e.ctx, e.prefix, start)
	if ev := e.next(c); ev.KV.Key != kept {
		e.Fatalf("first event: %+v", ev)
	}
	e.ok(s.Close())
	promised := l.Expires()

	first, second := e.next(c), e.next(c)
	if now := time.Now(); now.Before(promised) {
		e.Errorf("the lease's keys were deleted %v before it was to expire", promised.Sub(now))
	}
	for _, ev := range []kvdb.Event{first, second} {
		if ev.Err != nil || ev.Type != kvdb.EventDelete || ev.KV.Mod != first.KV.Mod {
			e.Errorf("want two deletes of one revision, got %+v", ev)
		}
	}
	if first.KV.Key == second.KV.Key {
		e.Errorf("%s was deleted twice", first.KV.Key)
	}
	e.wantAbsent(a)
	e.wantAbsent(b)
	e.wantValue(kept, "without a lease")
	e.wantDone(l)
}

func testLeaseRevoked(e *env) {
	l := e.grant(e.s)
	a, b := e.key("a"), e.key("b")
	e.putLeased(a, l)
	e.putLeased(b, l)
	e.ok(l.Revoke(e.ctx))
	e.wantDone(l)
	e.wantAbsent(a)
	e.wantAbsent(b)
	if err := l.Revoke(e.ctx); !isErr(err, kvdb.ErrLeaseGone) {
		e.Errorf("second revocation: %v, want ErrLeaseGone", err)
	}
}

func testLeaseGone(e *env) {
	l := e.grant(e.s)
	e.ok(l.Revoke(e.ctx))
	k, leased := e.key("k"), e.key("leased")
	before := e.revision()
	_, err := e.s.Txn(e.ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpPut, Key: k, Value: []byte("v")},
		{Kind: kvdb.OpPut, Key: leased, Value: []byte("v"), Lease: l.ID()},
	}})
	if !isErr(err, kvdb.ErrLeaseGone) {
		e.Errorf("put with a lease that has ended: %v, want ErrLeaseGone", err)
	}
	e.wantAbsent(k)
	if rev := e.revision(); rev != before {
		e.Errorf("a refused transaction took the revision from %d to %d", before, rev)
	}
	// The part that does not run is not looked at.
	res, err := e.s.Txn(e.ctx, kvdb.Txn{
		Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: k, Value: []byte("v")}},
		Else: []kvdb.Op{{Kind: kvdb.OpPut, Key: leased, Lease: l.ID()}},
	})
	if err != nil || !res.Succeeded {
		e.Errorf("an ended lease in the part that does not run: %+v, %v", res, err)
	}
}

// A key belongs to the lease of its last put.
func testLeaseDetached(e *env) {
	l1, l2 := e.grant(e.s), e.grant(e.s)
	detached, moved, again := e.key("detached"), e.key("moved"), e.key("again")
	for _, k := range []string{detached, moved, again} {
		e.putLeased(k, l1)
	}
	e.put(detached, "free")
	e.putLeased(moved, l2)
	e.ok(kvdb.Delete(e.ctx, e.s, again))
	e.put(again, "created anew")
	e.ok(l1.Revoke(e.ctx))
	e.wantValue(detached, "free")
	e.wantValue(moved, "leased")
	e.wantValue(again, "created anew")
	e.ok(l2.Revoke(e.ctx))
	e.wantAbsent(moved)
}

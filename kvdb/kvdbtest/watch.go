package kvdbtest

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// next returns the watch's next event, which has to come.
func (e *env) next(c <-chan kvdb.Event) kvdb.Event {
	e.Helper()
	select {
	case ev, ok := <-c:
		if !ok {
			e.Fatal("the watch closed without telling why")
		}
		return ev
	case <-time.After(patience):
		e.Fatalf("no event within %v", patience)
		return kvdb.Event{}
	}
}

// wantEvent takes one event and checks it.
func (e *env) wantEvent(c <-chan kvdb.Event, typ kvdb.EventType, key, value string, rev kvdb.Revision) {
	e.Helper()
	ev := e.next(c)
	if ev.Err != nil || ev.Type != typ || ev.KV.Key != key || string(ev.KV.Value) != value || ev.KV.Mod != rev {
		e.Fatalf("got %+v, want type %d of %s = %q at %d", ev, typ, key, value, rev)
	}
	if typ == kvdb.EventDelete && (ev.KV.Created != 0 || ev.KV.Lease != 0) {
		e.Errorf("delete has more than key and revision: %+v", ev)
	}
}

// wantEnd checks that the watch ends with err and nothing else.
func (e *env) wantEnd(c <-chan kvdb.Event, err error) {
	e.Helper()
	if ev := e.next(c); !isErr(ev.Err, err) {
		e.Fatalf("got %+v, want the end with %v", ev, err)
	}
	if ev, open := <-c; open {
		e.Fatalf("%+v after the end", ev)
	}
}

func testWatchOrder(e *env) {
	a, b, other := e.key("w/a"), e.key("w/b"), e.key("x")
	start := e.put(a, "0")
	ctx, cancel := context.WithCancel(e.ctx)
	c := e.s.Watch(ctx, e.key("w/"), start)

	r1 := e.put(a, "1")
	e.put(other, "not under the prefix")
	r2 := e.put(b, "2")
	e.ok(kvdb.Delete(e.ctx, e.s, a))
	r3 := e.revision()
	r4 := e.txn(kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpPut, Key: a, Value: []byte("4")},
		{Kind: kvdb.OpPut, Key: other, Value: []byte("4")},
		{Kind: kvdb.OpDelete, Key: b},
	}}).Revision

	e.wantEvent(c, kvdb.EventPut, a, "1", r1)
	e.wantEvent(c, kvdb.EventPut, b, "2", r2)
	e.wantEvent(c, kvdb.EventDelete, a, "", r3)
	e.wantEvent(c, kvdb.EventPut, a, "4", r4)
	e.wantEvent(c, kvdb.EventDelete, b, "", r4)
	cancel()
	e.wantEnd(c, context.Canceled)
}

// A watch that begins at any revision, before or after, has the rest whole.
func testWatchRestart(e *env) {
	const changes = 10
	start := e.revision()
	var revs []kvdb.Revision
	for n := range changes {
		revs = append(revs, e.put(e.key("k"), strconv.Itoa(n)))
	}
	for i, after := range append([]kvdb.Revision{start}, revs...) {
		ctx, cancel := context.WithCancel(e.ctx)
		c := e.s.Watch(ctx, e.prefix, after)
		for n := i; n < changes; n++ {
			e.wantEvent(c, kvdb.EventPut, e.key("k"), strconv.Itoa(n), revs[n])
		}
		cancel()
		e.wantEnd(c, context.Canceled)
	}
	// From a revision that does not exist yet.
	c := e.s.Watch(e.ctx, e.prefix, revs[changes-1]+1)
	e.put(e.key("k"), "skipped")
	last := e.put(e.key("k"), "last")
	e.wantEvent(c, kvdb.EventPut, e.key("k"), "last", last)
}

// Changes made by many at once come to every watch in one order, without gaps,
// and a slow receiver misses nothing.
func testWatchConcurrent(e *env) {
	const writers, writes, watchers = 4, 20, 3
	start := e.revision()
	var watches []<-chan kvdb.Event
	for range watchers {
		watches = append(watches, open(e.T, e.h).Watch(e.ctx, e.prefix, start))
	}
	e.parallel(writers, func(i int, s kvdb.Store) error {
		for n := range writes {
			if _, err := kvdb.Put(e.ctx, s, e.key("%d", i), []byte(strconv.Itoa(n))); err != nil {
				return err
			}
		}
		return nil
	})
	var first []string
	for w, c := range watches {
		var got []string
		last := start
		seen := make(map[string]int)
		for range writers * writes {
			ev := e.next(c)
			if ev.Err != nil {
				e.Fatal(ev.Err)
			}
			if ev.KV.Mod <= last {
				e.Fatalf("watch %d: revision %d after %d", w, ev.KV.Mod, last)
			}
			last = ev.KV.Mod
			if want := strconv.Itoa(seen[ev.KV.Key]); string(ev.KV.Value) != want {
				e.Fatalf("watch %d: %s became %s, want %s next", w, ev.KV.Key, ev.KV.Value, want)
			}
			seen[ev.KV.Key]++
			got = append(got, fmt.Sprint(ev.KV.Mod, ev.KV.Key))
		}
		if w == 0 {
			first = got
		}
		for i := range got {
			if got[i] != first[i] {
				e.Fatalf("event %d: watch %d has %s, watch 0 has %s", i, w, got[i], first[i])
			}
		}
	}
}

func testWatchEnds(e *env) {
	// With its context, also when the receiver is behind.
	start := e.revision()
	e.put(e.key("k"), "1")
	e.put(e.key("k"), "2")
	e.put(e.key("k"), "3")
	ctx, cancel := context.WithCancel(e.ctx)
	behind := e.s.Watch(ctx, e.prefix, start)
	if ev := e.next(behind); string(ev.KV.Value) != "1" {
		e.Fatalf("first event: %+v", ev)
	}
	cancel()
	want := 2
	for {
		ev := e.next(behind)
		if ev.Err != nil {
			if !isErr(ev.Err, context.Canceled) {
				e.Errorf("end: %v", ev.Err)
			}
			break
		}
		if string(ev.KV.Value) != strconv.Itoa(want) {
			e.Errorf("got %s before the end, want %d", ev.KV.Value, want)
		}
		want++
	}
	if _, open := <-behind; open {
		e.Error("event after the end")
	}

	// With the store; nobody reads the one, the other has nothing to say.
	s := e.h.Open(e.T)
	unread := s.Watch(e.ctx, e.prefix, start)
	idle := s.Watch(e.ctx, e.key("nothing"), start)
	if _, err := s.Get(e.ctx, e.key("k")); err != nil {
		e.Fatal(err)
	}
	e.ok(s.Close())
	e.wantEnd(idle, kvdb.ErrClosed)
	for ev := range unread {
		if ev.Err != nil && !isErr(ev.Err, kvdb.ErrClosed) {
			e.Errorf("end: %v", ev.Err)
		}
	}

	// With an ended context.
	ctx, cancel = context.WithCancel(e.ctx)
	cancel()
	e.wantEnd(e.s.Watch(ctx, e.key("nothing"), start), context.Canceled)
}

func testWatchInvalid(e *env) {
	e.wantEnd(e.s.Watch(e.ctx, e.prefix, -1), kvdb.ErrInvalid)
	e.wantEnd(e.s.Watch(e.ctx, "\xff", 0), kvdb.ErrInvalid)
}

func testWatchCompacted(e *env) {
	k := e.key("k")
	start := e.put(k, "0")
	for n := 1; n <= 3; n++ {
		e.put(k, strconv.Itoa(n))
	}
	e.h.Compact(e.T, e.revision())
	e.wantEnd(e.s.Watch(e.ctx, e.prefix, start), kvdb.ErrCompacted)

	// What the contract says to do then.
	_, rev, err := e.s.List(e.ctx, e.prefix)
	e.ok(err)
	c := e.s.Watch(e.ctx, e.prefix, rev)
	last := e.put(k, "last")
	e.wantEvent(c, kvdb.EventPut, k, "last", last)
}

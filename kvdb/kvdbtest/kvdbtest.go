// Package kvdbtest is the suite that every kvdb.Store passes. What it checks
// is the contract; a store's own tests add what happens when its parts fail.
package kvdbtest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// Harness is a running store under test. The state may have other keys; the
// suite uses those that begin with the name of the test.
type Harness struct {
	// Open returns another client of the same state, as another node would have.
	Open func(t testing.TB) kvdb.Store

	// Compact makes watches from before rev, which exists, end with kvdb.ErrCompacted.
	Compact func(t testing.TB, rev kvdb.Revision)
}

// patience is how long anything may take on a busy machine.
const patience = 30 * time.Second

// Run runs the suite. factory is called once.
func Run(t *testing.T, factory func(t *testing.T) Harness) {
	h := factory(t)
	for _, test := range []struct {
		name string
		run  func(*env)
	}{
		{"Get", testGet},
		{"List", testList},
		{"TxnCompare", testTxnCompare},
		{"TxnOps", testTxnOps},
		{"TxnReadsItself", testTxnReadsItself},
		{"Helpers", testHelpers},
		{"Limits", testLimits},
		{"Values", testValues},
		{"RevisionsGrow", testRevisionsGrow},
		{"ReadsSeeCompletedWrites", testReadsSeeCompletedWrites},
		{"Increments", testIncrements},
		{"WatchOrder", testWatchOrder},
		{"WatchRestart", testWatchRestart},
		{"WatchConcurrent", testWatchConcurrent},
		{"WatchEnds", testWatchEnds},
		{"WatchInvalid", testWatchInvalid},
		{"LeaseKeptAlive", testLeaseKeptAlive},
		{"LeaseExpires", testLeaseExpires},
		{"LeaseRevoked", testLeaseRevoked},
		{"LeaseGone", testLeaseGone},
		{"LeaseDetached", testLeaseDetached},
		{"LeaseInvalid", testLeaseInvalid},
		{"Context", testContext},
		{"Close", testClose},
		{"WatchCompacted", testWatchCompacted}, // last: it compacts under everyone's feet
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			test.run(&env{T: t, ctx: ctx, h: h, s: open(t, h), prefix: t.Name() + "/"})
		})
	}
}

// open returns a client that is closed with the test.
func open(t testing.TB, h Harness) kvdb.Store {
	t.Helper()
	s := h.Open(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// env is one test's surroundings.
type env struct {
	*testing.T
	ctx    context.Context
	h      Harness
	s      kvdb.Store
	prefix string
}

func (e *env) key(format string, args ...any) string { return e.prefix + fmt.Sprintf(format, args...) }

func (e *env) ok(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *env) put(key, value string) kvdb.Revision {
	e.Helper()
	rev, err := kvdb.Put(e.ctx, e.s, key, []byte(value))
	e.ok(err)
	return rev
}

func (e *env) txn(t kvdb.Txn) kvdb.TxnResult {
	e.Helper()
	res, err := e.s.Txn(e.ctx, t)
	e.ok(err)
	return res
}

// want checks that key is as given; an empty value of want is an absent key.
func (e *env) wantValue(key, value string) kvdb.KV {
	e.Helper()
	kv, err := e.s.Get(e.ctx, key)
	e.ok(err)
	if string(kv.Value) != value {
		e.Fatalf("%s is %q, want %q", key, kv.Value, value)
	}
	return kv
}

func (e *env) wantAbsent(key string) {
	e.Helper()
	if kv, err := e.s.Get(e.ctx, key); !isErr(err, kvdb.ErrNotFound) {
		e.Fatalf("%s: got %v, %v, want ErrNotFound", key, kv, err)
	}
}

func (e *env) revision() kvdb.Revision {
	e.Helper()
	_, rev, err := e.s.List(e.ctx, e.prefix)
	e.ok(err)
	return rev
}

func testGet(e *env) {
	k := e.key("k")
	e.wantAbsent(k)

	created := e.put(k, "one")
	kv := e.wantValue(k, "one")
	if kv.Key != k || kv.Created != created || kv.Mod != created || kv.Lease != 0 {
		e.Errorf("after create at %d: %+v", created, kv)
	}
	changed := e.put(k, "two")
	kv = e.wantValue(k, "two")
	if kv.Created != created || kv.Mod != changed || changed <= created {
		e.Errorf("after create at %d and change at %d: %+v", created, changed, kv)
	}
	e.ok(kvdb.Delete(e.ctx, e.s, k))
	e.wantAbsent(k)
	again := e.put(k, "three")
	if kv = e.wantValue(k, "three"); kv.Created != again {
		e.Errorf("created anew at %d: %+v", again, kv)
	}

	e.put(k, "")
	e.wantValue(k, "")
	binary := string([]byte{0, 0xff, 0xfe, '\n', 0})
	e.put(k, binary)
	e.wantValue(k, binary)
}

func testList(e *env) {
	kvs, _, err := e.s.List(e.ctx, e.prefix)
	e.ok(err)
	if len(kvs) != 0 {
		e.Fatalf("list of nothing: %v", kvs)
	}
	names := []string{"b", "a/2", "a/10", "a", "a0", "aé", "a/"}
	var last kvdb.Revision
	for _, n := range names {
		last = e.put(e.key("%s", n), n)
	}
	for prefix, want := range map[string]string{
		"":    "a a/ a/10 a/2 a0 aé b",
		"a":   "a a/ a/10 a/2 a0 aé",
		"a/":  "a/ a/10 a/2",
		"a/1": "a/10",
		"c":   "",
	} {
		kvs, rev, err := e.s.List(e.ctx, e.key("%s", prefix))
		e.ok(err)
		var got []string
		for _, kv := range kvs {
			got = append(got, string(kv.Value))
		}
		if strings.Join(got, " ") != want {
			e.Errorf("list of %q: %v, want %s", prefix, got, want)
		}
		if rev < last {
			e.Errorf("list of %q at revision %d, after a change at %d", prefix, rev, last)
		}
	}
	all, _, err := e.s.List(e.ctx, "")
	e.ok(err)
	if len(all) < len(names) {
		e.Errorf("list of everything: %d keys", len(all))
	}
}

func testTxnCompare(e *env) {
	there, absent := e.key("there"), e.key("absent")
	first := e.put(there, "v0")
	mod := e.put(there, "v")
	for _, c := range []struct {
		name string
		cmp  kvdb.Cmp
		want bool
	}{
		{"mod", kvdb.Cmp{Key: there, Target: kvdb.CmpMod, Revision: mod}, true},
		{"older mod", kvdb.Cmp{Key: there, Target: kvdb.CmpMod, Revision: first}, false},
		{"mod of an absent key", kvdb.Cmp{Key: absent, Target: kvdb.CmpMod, Revision: mod}, false},
		{"mod 0 of an absent key", kvdb.Cmp{Key: absent, Target: kvdb.CmpMod}, true},
		{"mod 0", kvdb.Cmp{Key: there, Target: kvdb.CmpMod}, false},
		{"value", kvdb.Cmp{Key: there, Target: kvdb.CmpValue, Value: []byte("v")}, true},
		{"other value", kvdb.Cmp{Key: there, Target: kvdb.CmpValue, Value: []byte("w")}, false},
		{"beginning of the value", kvdb.Cmp{Key: there, Target: kvdb.CmpValue}, false},
		{"empty value of an absent key", kvdb.Cmp{Key: absent, Target: kvdb.CmpValue}, false},
		{"exists", kvdb.Cmp{Key: there, Target: kvdb.CmpExists}, true},
		{"absent exists", kvdb.Cmp{Key: absent, Target: kvdb.CmpExists}, false},
		{"absent", kvdb.Cmp{Key: absent, Target: kvdb.CmpAbsent}, true},
		{"existing is absent", kvdb.Cmp{Key: there, Target: kvdb.CmpAbsent}, false},
	} {
		for _, readOnly := range []bool{true, false} {
			t := kvdb.Txn{If: []kvdb.Cmp{c.cmp}}
			if !readOnly {
				t.Then = []kvdb.Op{{Kind: kvdb.OpPut, Key: e.key("mark"), Value: []byte("then")}}
				t.Else = []kvdb.Op{{Kind: kvdb.OpPut, Key: e.key("mark"), Value: []byte("else")}}
			}
			if res := e.txn(t); res.Succeeded != c.want {
				e.Errorf("%s (read-only %v): succeeded %v, want %v", c.name, readOnly, res.Succeeded, c.want)
			}
			if !readOnly {
				e.wantValue(e.key("mark"), map[bool]string{true: "then", false: "else"}[c.want])
			}
		}
	}
	exists, lost := kvdb.Cmp{Key: there, Target: kvdb.CmpExists}, kvdb.Cmp{Key: there, Target: kvdb.CmpAbsent}
	for want, cmps := range map[bool][]kvdb.Cmp{true: {exists, exists}, false: {exists, lost}} {
		if res := e.txn(kvdb.Txn{If: cmps}); res.Succeeded != want {
			e.Errorf("%v: succeeded %v: all comparisons have to hold", cmps, res.Succeeded)
		}
	}
}

func testTxnOps(e *env) {
	a, b, c := e.key("a"), e.key("b"), e.key("c")
	e.put(c, "old")
	before := e.revision()

	res := e.txn(kvdb.Txn{
		If: []kvdb.Cmp{{Key: a, Target: kvdb.CmpAbsent}},
		Then: []kvdb.Op{
			{Kind: kvdb.OpPut, Key: a, Value: []byte("1")},
			{Kind: kvdb.OpGet, Key: e.key("nothing")},
			{Kind: kvdb.OpPut, Key: b, Value: []byte("2")},
			{Kind: kvdb.OpDelete, Key: c},
			{Kind: kvdb.OpDelete, Key: e.key("nothing")},
		},
		Else: []kvdb.Op{{Kind: kvdb.OpGet, Key: a}},
	})
	if !res.Succeeded || res.Revision != before+1 || len(res.Gets) != 1 || res.Gets[0] != nil {
		e.Errorf("at revision %d: %+v, want success with one revision more and one empty get", before, res)
	}
	for _, k := range []string{a, b} {
		if kv, err := e.s.Get(e.ctx, k); err != nil || kv.Mod != res.Revision || kv.Created != res.Revision {
			e.Errorf("%s after the transaction at %d: %+v, %v", k, res.Revision, kv, err)
		}
	}
	e.wantAbsent(c)

	// The other part, which changes nothing, takes no revision.
	lost := e.txn(kvdb.Txn{
		If:   []kvdb.Cmp{{Key: a, Target: kvdb.CmpAbsent}},
		Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: a, Value: []byte("no")}},
		Else: []kvdb.Op{{Kind: kvdb.OpGet, Key: a}, {Kind: kvdb.OpGet, Key: c}, {Kind: kvdb.OpGet, Key: b}},
	})
	if lost.Succeeded || lost.Revision != res.Revision || len(lost.Gets) != 3 {
		e.Fatalf("lost comparison: %+v", lost)
	}
	if lost.Gets[0] == nil || string(lost.Gets[0].Value) != "1" || lost.Gets[1] != nil || lost.Gets[2] == nil || lost.Gets[2].Key != b {
		e.Errorf("gets of the lost comparison are not in order: %v", lost.Gets)
	}
	if res := e.txn(kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpDelete, Key: c}}}); res.Revision != lost.Revision {
		e.Errorf("deleting nothing took revision %d after %d", res.Revision, lost.Revision)
	}
	if res := e.txn(kvdb.Txn{}); !res.Succeeded || res.Revision != lost.Revision {
		e.Errorf("empty transaction: %+v", res)
	}
}

func testTxnReadsItself(e *env) {
	k := e.key("k")
	e.put(k, "old")
	get := kvdb.Op{Kind: kvdb.OpGet, Key: k}
	res := e.txn(kvdb.Txn{Then: []kvdb.Op{get, {Kind: kvdb.OpPut, Key: k, Value: []byte("new")}, get}})
	if len(res.Gets) != 2 || res.Gets[0] == nil || res.Gets[1] == nil {
		e.Fatalf("%+v", res)
	}
	if old, now := res.Gets[0], res.Gets[1]; string(old.Value) != "old" || string(now.Value) != "new" || now.Mod != res.Revision {
		e.Errorf("before the put %+v, after it %+v", old, now)
	}
}

func testHelpers(e *env) {
	k := e.key("k")
	if err := kvdb.Delete(e.ctx, e.s, k); !isErr(err, kvdb.ErrNotFound) {
		e.Errorf("delete of nothing: %v", err)
	}
	created, err := kvdb.Create(e.ctx, e.s, k, []byte("1"))
	e.ok(err)
	if _, err := kvdb.Create(e.ctx, e.s, k, []byte("2")); !isErr(err, kvdb.ErrConflict) {
		e.Errorf("create of an existing key: %v", err)
	}
	swapped, err := kvdb.CompareAndSwap(e.ctx, e.s, k, created, []byte("3"))
	e.ok(err)
	if _, err := kvdb.CompareAndSwap(e.ctx, e.s, k, created, []byte("4")); !isErr(err, kvdb.ErrConflict) {
		e.Errorf("swap from an old revision: %v", err)
	}
	if _, err := kvdb.CompareAndSwap(e.ctx, e.s, e.key("new"), 0, []byte("5")); err != nil {
		e.Errorf("swap from absent: %v", err)
	}
	e.wantValue(k, "3")
	if err := kvdb.CompareAndDelete(e.ctx, e.s, k, created); !isErr(err, kvdb.ErrConflict) {
		e.Errorf("delete at an old revision: %v", err)
	}
	if err := kvdb.CompareAndDelete(e.ctx, e.s, k, 0); !isErr(err, kvdb.ErrInvalid) {
		e.Errorf("delete at revision 0: %v", err)
	}
	e.ok(kvdb.CompareAndDelete(e.ctx, e.s, k, swapped))
	e.wantAbsent(k)
}

func testValues(e *env) {
	k := e.key("k")
	value := []byte("value")
	_, err := kvdb.Put(e.ctx, e.s, k, value)
	e.ok(err)
	copy(value, "XXXXX") // the store must not have kept the caller's slice
	got := e.wantValue(k, "value")
	copy(got.Value, "YYYYY") // nor have given its own away
	e.wantValue(k, "value")
	kvs, _, err := e.s.List(e.ctx, k)
	e.ok(err)
	copy(kvs[0].Value, "ZZZZZ")
	e.wantValue(k, "value")

	large := bytes.Repeat([]byte{'x'}, kvdb.MaxValue)
	for i := range 5 { // more than one message of the usual size
		_, err := kvdb.Put(e.ctx, e.s, e.key("large/%d", i), large)
		e.ok(err)
	}
	kvs, _, err = e.s.List(e.ctx, e.key("large/"))
	e.ok(err)
	if len(kvs) != 5 {
		e.Fatalf("list of 5 large values has %d", len(kvs))
	}
	for _, kv := range kvs {
		if !bytes.Equal(kv.Value, large) {
			e.Errorf("%s has %d bytes, or other ones", kv.Key, len(kv.Value))
		}
	}
	gets := kvdb.Txn{}
	for i := range 5 {
		gets.Then = append(gets.Then, kvdb.Op{Kind: kvdb.OpGet, Key: e.key("large/%d", i)})
	}
	if res := e.txn(gets); len(res.Gets) != 5 {
		e.Errorf("%d gets of 5 large values", len(res.Gets))
	}
}

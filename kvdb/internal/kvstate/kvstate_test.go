package kvstate

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/internal/testseed"
	"github.com/tandem-storage/tandem/kvdb"
)

func put(t *testing.T, m *Machine, key, value string) kvdb.Revision {
	t.Helper()
	res, err := m.Txn(kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
	return res.Revision
}

// all reads the history from after on, batch by batch.
func all(t *testing.T, m *Machine, after kvdb.Revision, prefix string) (events []kvdb.Event, batches int) {
	t.Helper()
	for {
		b, err := m.Since(after, prefix)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, b.Events...)
		batches++
		if b.Through < after {
			t.Fatalf("batch after %d is through %d", after, b.Through)
		}
		after = b.Through
		if b.More != nil {
			return events, batches
		}
	}
}

func TestSinceInBatches(t *testing.T) {
	m := New(1 << 20)
	const n = 3*maxBatch + 7
	for i := range n {
		put(t, m, fmt.Sprintf("%c/%d", 'a'+rune(i%2), i), "")
	}
	events, batches := all(t, m, 1, "a/")
	if len(events) != (n+1)/2 || batches < 3 {
		t.Errorf("%d events in %d batches, want %d in several", len(events), batches, (n+1)/2)
	}
	for i, e := range events {
		if want := kvdb.Revision(2 + 2*i); e.KV.Mod != want {
			t.Fatalf("event %d has revision %d, want %d", i, e.KV.Mod, want)
		}
	}
	large := strings.Repeat("x", maxBatchBytes/2)
	start := m.Revision()
	for i := range 8 {
		put(t, m, fmt.Sprint("large/", i), large)
	}
	if events, batches = all(t, m, start, "large/"); len(events) != 8 || batches < 3 {
		t.Errorf("%d large events in %d batches, want 8 in several", len(events), batches)
	}
}

// A revision with more events than a batch has is not split.
func TestSinceKeepsRevisionsWhole(t *testing.T) {
	m := New(1 << 20)
	if err := m.Grant(1, time.Minute); err != nil {
		t.Fatal(err)
	}
	const n = 2*maxBatch + 1
	for i := range n {
		if _, err := m.Txn(kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: fmt.Sprintf("%05d", i), Lease: 1}}}); err != nil {
			t.Fatal(err)
		}
	}
	before := m.Revision()
	if err := m.EndLease(1); err != nil {
		t.Fatal(err)
	}
	b, err := m.Since(before, "")
	if err != nil || len(b.Events) != n || b.Through != before+1 {
		t.Errorf("%d events through %d, %v, want %d through %d", len(b.Events), b.Through, err, n, before+1)
	}
	if events, _ := all(t, m, 1, ""); len(events) != 2*n {
		t.Errorf("%d events in all, want %d", len(events), 2*n)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	const keep = 10
	m := New(keep)
	for i := range 100 {
		rev := put(t, m, "k", fmt.Sprint(i))
		if len(m.history.events) > 2*keep {
			t.Fatalf("%d events are kept", len(m.history.events))
		}
		if events, _ := all(t, m, max(1, rev-keep), ""); len(events) == 0 || events[len(events)-1].KV.Mod != rev {
			t.Fatalf("at %d: the last %d changes are not there: %v", rev, keep, events)
		}
	}
	if _, err := m.Since(1, ""); !errors.Is(err, kvdb.ErrCompacted) {
		t.Errorf("the first change: %v, want ErrCompacted", err)
	}
	bytes := 0
	for _, e := range m.history.events {
		bytes += eventSize(e)
	}
	if bytes != m.history.bytes {
		t.Errorf("the history counts %d bytes and has %d", m.history.bytes, bytes)
	}

	m = New(1 << 20)
	value := strings.Repeat("x", kvdb.MaxValue)
	for range 2*maxHistoryBytes/kvdb.MaxValue + 1 {
		put(t, m, "k", value)
	}
	if m.history.bytes > maxHistoryBytes+kvdb.MaxValue {
		t.Errorf("%d bytes are kept", m.history.bytes)
	}
}

// A machine restored from a snapshot at any moment goes on as the one it was taken from.
func TestRestoredMachineGoesOnAlike(t *testing.T) {
	seed := testseed.Of(t)
	r := rand.New(rand.NewPCG(seed, 0))
	a := New(1000)
	var step = func(m *Machine, n, k uint64) string {
		key := fmt.Sprint("k", k%20)
		lease := kvdb.LeaseID(1 + k%4)
		switch n % 8 {
		case 0:
			return fmt.Sprint(m.Grant(lease, time.Minute))
		case 1:
			return fmt.Sprint(m.EndLease(lease))
		case 2, 3:
			res, err := m.Txn(kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: key, Lease: lease}}})
			return fmt.Sprint(res, err)
		case 4:
			res, err := m.Txn(kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpDelete, Key: key}}})
			return fmt.Sprint(res, err)
		default:
			res, err := m.Txn(kvdb.Txn{
				If:   []kvdb.Cmp{{Key: key, Target: kvdb.CmpMod, Revision: kvdb.Revision(k % 50)}},
				Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: key, Value: fmt.Append(nil, n)}},
				Else: []kvdb.Op{{Kind: kvdb.OpPut, Key: key + "x", Value: fmt.Append(nil, k)}},
			})
			return fmt.Sprint(res.Succeeded, res.Revision, err)
		}
	}
	for range 40 {
		for range r.IntN(50) {
			step(a, r.Uint64(), r.Uint64())
		}
		snap := a.Snapshot()
		var kvs []kvdb.KV
		if err := snap.Keys(func(kv kvdb.KV) error { kvs = append(kvs, kv); return nil }); err != nil {
			t.Fatal(err)
		}
		b := New(1000)
		if err := b.Restore(snap.Revision, snap.Leases, kvs); err != nil {
			t.Fatal(err)
		}
		for range 50 {
			n, k := r.Uint64(), r.Uint64()
			if gotA, gotB := step(a, n, k), step(b, n, k); gotA != gotB {
				t.Fatalf("%s, restored %s", gotA, gotB)
			}
		}
		kvsA, revA := a.List("")
		kvsB, revB := b.List("")
		if revA != revB || !reflect.DeepEqual(kvsA, kvsB) || !reflect.DeepEqual(a.Leases(), b.Leases()) {
			t.Fatalf("at %d %v, restored at %d %v", revA, kvsA, revB, kvsB)
		}
	}
}

func TestRestoreRefusesNonsense(t *testing.T) {
	m := New(10)
	put(t, m, "k", "v")
	for name, kv := range map[string]kvdb.KV{
		"key of a later revision":   {Key: "x", Mod: 8},
		"key of a lease it has not": {Key: "x", Mod: 1, Lease: 4},
	} {
		if err := m.Restore(7, nil, []kvdb.KV{kv}); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	if kvs, rev := m.List(""); len(kvs) != 1 || rev != 2 {
		t.Errorf("a refused snapshot left %v at %d", kvs, rev)
	}
}

func TestDeadlines(t *testing.T) {
	now := time.Unix(1000, 0)
	d := NewDeadlines()
	leases := map[kvdb.LeaseID]time.Duration{1: 10 * time.Second, 2: 20 * time.Second}
	want := func(after time.Duration, ids ...kvdb.LeaseID) {
		t.Helper()
		due := d.Due(now.Add(after))
		got := make(map[kvdb.LeaseID]bool)
		for _, id := range due {
			got[id] = true
		}
		for _, id := range ids {
			if !got[id] {
				t.Errorf("after %v lease %d is not due", after, id)
			}
		}
		if len(due) != len(ids) {
			t.Errorf("after %v due are %v, want %v", after, due, ids)
		}
	}
	d.Sync(now, leases)
	want(10*time.Second - 1)
	want(10*time.Second, 1)
	d.Sync(now.Add(5*time.Second), leases) // changes nothing of those that are known
	want(10*time.Second, 1)
	d.Extend(1, now.Add(15*time.Second))
	d.Extend(1, now.Add(12*time.Second)) // is later than asked already
	want(14 * time.Second)
	want(20*time.Second, 1, 2)
	d.Postpone(5 * time.Second)
	want(20*time.Second - 1)
	want(25*time.Second, 1, 2)
	delete(leases, 2)
	leases[3] = time.Second
	d.Sync(now, leases)
	want(25*time.Second, 1, 3)
}

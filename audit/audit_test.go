package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/memkv"
	"github.com/tandem-storage/tandem/kvdb/raftkv"
)

func memStore(t *testing.T) kvdb.Store {
	s := memkv.NewServer(memkv.Options{}).Open()
	t.Cleanup(func() { s.Close() })
	return s
}

func raftStore(t *testing.T) kvdb.Store {
	m, err := raftkv.OpenMember(raftkv.Options{Node: "n1", Dir: filepath.Join(t.TempDir(), "kvdb"), Bootstrap: true, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// lossy is a store of which some writing transactions get no answer, and of those some no hearing.
type lossy struct {
	kvdb.Store
	mu  sync.Mutex
	rng *rand.Rand
}

func (l *lossy) Txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	l.mu.Lock()
	unheard, unanswered := l.rng.IntN(6) == 0, l.rng.IntN(6) == 0
	l.mu.Unlock()
	if t.ReadOnly() {
		return l.Store.Txn(ctx, t)
	}
	if unheard {
		return kvdb.TxnResult{}, kvdb.ErrUnavailable
	}
	res, err := l.Store.Txn(ctx, t)
	if unanswered {
		return kvdb.TxnResult{}, kvdb.ErrUnavailable
	}
	return res, err
}

func trail(s kvdb.Store, node string, keep uint64) *Log {
	l := New(s, "c", node)
	l.keep = keep
	return l
}

func verify(t *testing.T, l *Log) *Report {
	t.Helper()
	r, err := l.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fill appends n entries, "0" to "n-1".
func fill(t *testing.T, l *Log, n int) []Entry {
	t.Helper()
	var es []Entry
	for i := range n {
		e, err := l.Append(t.Context(), Record{Actor: "op", Verb: "test", Object: "thing/1", Reason: fmt.Sprint(i), Outcome: "done", Epoch: uint64(i), Lost: []string{"v1", "v2"}})
		if err != nil {
			t.Fatal(err)
		}
		es = append(es, e)
	}
	return es
}

// Writers on several nodes, whose transactions are lost on the way now and then, make one chain in which every record is once,
// and of which the oldest entries are cut off.
func TestWritersMakeOneChain(t *testing.T) {
	const writers = 4 // of which three make less than are kept, see Append
	for _, tc := range []struct {
		name string
		open func(*testing.T) kvdb.Store
		each int
		keep uint64
	}{{"memkv", memStore, 25, Keep}, {"memkv, cut", memStore, 25, 80}, {"raftkv, cut", raftStore, 8, 25}} {
		t.Run(tc.name, func(t *testing.T) {
			s, each, keep := tc.open(t), tc.each, tc.keep
			var wg sync.WaitGroup
			var mu sync.Mutex
			var all []Entry
			for w := range writers {
				wg.Go(func() {
					l := trail(&lossy{Store: s, rng: rand.New(rand.NewPCG(7, uint64(w)))}, fmt.Sprint("n", w), keep)
					for i := range each {
						e, err := l.Append(t.Context(), Record{Verb: "test", Reason: fmt.Sprintf("%d/%d", w, i)})
						if err != nil {
							t.Error(err)
						}
						mu.Lock()
						all = append(all, e)
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			l := trail(s, "n", keep)
			es, _, err := l.Entries(t.Context(), time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(all, func(a, b Entry) int { return int(a.Seq) - int(b.Seq) })
			all = all[max(0, len(all)-int(keep)):]
			if !slices.EqualFunc(es, all, func(a, b Entry) bool { return a.Hash == b.Hash && a.sum() == b.sum() }) {
				t.Errorf("%d entries are there, %d were told", len(es), len(all))
			}
			if r := verify(t, l); !r.Intact() || r.Last != uint64(writers*each) || r.Last-r.First+1 != uint64(len(all)) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// What somebody does to the records shows, and which record it was.
func TestTamperingShows(t *testing.T) {
	rewrite := func(t *testing.T, l *Log, seq uint64, change func(e *Entry)) {
		kv, err := l.store.Get(t.Context(), l.entryKey(seq))
		if err != nil {
			t.Fatal(err)
		}
		e, err := parseEntry(kv.Value)
		if err != nil {
			t.Fatal(err)
		}
		change(e)
		op, err := put(kv.Key, e)
		if err != nil {
			t.Fatal(err)
		}
		raw(t, l, kv.Key, string(op.Value))
	}
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, l *Log)
		want []string // "seq text"
	}{
		{"nothing", func(*testing.T, *Log) {}, nil},
		{"reason", func(t *testing.T, l *Log) { rewrite(t, l, 6, func(e *Entry) { e.Reason = "another" }) }, []string{"6 has been changed"}},
		{"time", func(t *testing.T, l *Log) { rewrite(t, l, 6, func(e *Entry) { e.Time = e.Time.Add(time.Hour) }) }, []string{"6 has been changed"}},
		{"epoch", func(t *testing.T, l *Log) { rewrite(t, l, 6, func(e *Entry) { e.Epoch++ }) }, []string{"6 has been changed"}},
		{"volumes given up", func(t *testing.T, l *Log) { rewrite(t, l, 6, func(e *Entry) { e.Lost = []string{"v1v2"} }) }, []string{"6 has been changed"}},
		{"words moved between fields", func(t *testing.T, l *Log) { rewrite(t, l, 6, func(e *Entry) { e.Actor, e.Verb = "opt", "est" }) }, []string{"6 has been changed"}},
		{"content and hash", func(t *testing.T, l *Log) {
			rewrite(t, l, 6, func(e *Entry) { e.Reason = "another"; e.Hash = e.sum() })
		}, []string{"7 does not follow entry 6"}},
		{"all of the last one", func(t *testing.T, l *Log) {
			rewrite(t, l, 12, func(e *Entry) { e.Reason = "another"; e.Hash = e.sum() })
		}, []string{"12 is not the one that the head names"}},
		{"all of the first one", func(t *testing.T, l *Log) {
			rewrite(t, l, 5, func(e *Entry) { e.Prev = Hash{1}; e.Hash = e.sum() })
		}, []string{"5 has been changed, or the anchor", "6 does not follow entry 5"}},
		{"taken out", func(t *testing.T, l *Log) { drop(t, l, l.entryKey(7)) }, []string{"7 is missing"}},
		{"some taken out", func(t *testing.T, l *Log) { drop(t, l, l.entryKey(7)); drop(t, l, l.entryKey(8)) }, []string{"7 is missing, and all to 8"}},
		{"the last taken out", func(t *testing.T, l *Log) { drop(t, l, l.entryKey(12)) }, []string{"12 is missing"}},
		{"the first taken out", func(t *testing.T, l *Log) { drop(t, l, l.entryKey(5)) }, []string{"5 is missing"}},
		{"two exchanged", func(t *testing.T, l *Log) {
			a, _ := l.store.Get(t.Context(), l.entryKey(7))
			b, _ := l.store.Get(t.Context(), l.entryKey(9))
			raw(t, l, a.Key, string(b.Value))
			raw(t, l, b.Key, string(a.Value))
		}, []string{"7 has been moved: it is entry 9", "9 has been moved: it is entry 7"}},
		{"garbage", func(t *testing.T, l *Log) { raw(t, l, l.entryKey(8), "\x00{") }, []string{"8 cannot be read"}},
		{"a hash of another length", func(t *testing.T, l *Log) { raw(t, l, l.entryKey(8), `{"hash":"00"}`) }, []string{"8 cannot be read"}},
		{"added at the end", func(t *testing.T, l *Log) { raw(t, l, l.entryKey(13), "{}") }, []string{"13 is not of the chain"}},
		{"one that was cut put back", func(t *testing.T, l *Log) { raw(t, l, l.entryKey(4), "{}") }, []string{"4 is not of the chain"}},
		{"some other key", func(t *testing.T, l *Log) { raw(t, l, l.logPrefix()+"x", "{}") }, []string{"0 a record is there that is none"}},
		{"head", func(t *testing.T, l *Log) { raw(t, l, l.headKey(), "\xff") }, []string{"0 cannot be read"}},
		{"head with no sense", func(t *testing.T, l *Log) { raw(t, l, l.headKey(), `{"first":9,"last":3}`) }, []string{"0 cannot be read"}},
		{"no head", func(t *testing.T, l *Log) { drop(t, l, l.headKey()) }, []string{"0 is missing"}},
		{"head moved back", func(t *testing.T, l *Log) {
			h, _, _ := l.readHead(t.Context())
			kv, _ := l.store.Get(t.Context(), l.entryKey(11))
			e, _ := parseEntry(kv.Value)
			h.Last, h.Hash = 11, e.Hash
			op, _ := put(l.headKey(), h)
			raw(t, l, l.headKey(), string(op.Value))
		}, []string{"12 is not of the chain"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := trail(memStore(t), "n", 8)
			fill(t, l, 12) // entries 5 to 12 are kept
			tc.do(t, l)
			r := verify(t, l)
			var got []string
			for _, f := range r.Faults {
				got = append(got, fmt.Sprintf("%d %s", f.Seq, f.Text))
			}
			if !slices.EqualFunc(got, tc.want, strings.HasPrefix) || r.Intact() != (len(tc.want) == 0) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			// Whatever it is, what comes after it is recorded, and the damage is never forgotten.
			fill(t, l, 1)
			fill(t, l, 20)
			r = verify(t, l)
			left := slices.DeleteFunc(r.Faults, func(f Fault) bool {
				return strings.Contains(f.Text, "none of the trail") || strings.Contains(f.Text, "is not of the chain")
			})
			if len(left) > 0 || len(tc.want) > 0 && r.Intact() || len(tc.want) == 0 && !r.Intact() {
				t.Errorf("later: %+v", r)
			}
		})
	}
}

func raw(t *testing.T, l *Log, key, value string) {
	t.Helper()
	if _, err := kvdb.Put(t.Context(), l.store, key, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func drop(t *testing.T, l *Log, key string) {
	t.Helper()
	if err := kvdb.Delete(t.Context(), l.store, key); err != nil {
		t.Fatal(err)
	}
}

// An entry stands or falls with the transaction that it is part of.
func TestStagedWithAChange(t *testing.T) {
	l := trail(memStore(t), "n", Keep)
	stage := func() kvdb.Txn {
		s, err := l.Stage(t.Context(), Record{Verb: "change"})
		if err != nil {
			t.Fatal(err)
		}
		txn := kvdb.Txn{If: []kvdb.Cmp{{Key: "x", Target: kvdb.CmpAbsent}}, Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: "x"}}}
		s.AddTo(&txn)
		return txn
	}
	first, second := stage(), stage()
	for i, txn := range []kvdb.Txn{first, second} {
		res, err := l.store.Txn(t.Context(), txn)
		if err != nil || res.Succeeded != (i == 0) {
			t.Fatal(i, res, err)
		}
	}
	// after the head, but x is there
	if res, err := l.store.Txn(t.Context(), stage()); err != nil || res.Succeeded {
		t.Fatal(res, err)
	}
	if r := verify(t, l); !r.Intact() || r.Last != 1 {
		t.Errorf("%+v", r)
	}
}

// Without the kvdb an append ends with its context, and does not count as made.
func TestAppendWithoutKvdb(t *testing.T) {
	s := memkv.NewServer(memkv.Options{}).Open()
	defer s.Close()
	s.SetReachable(false)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := New(s, "c", "n").Append(ctx, Record{}); !errors.Is(err, kvdb.ErrUnavailable) && !errors.Is(err, kvdb.ErrNoLeader) {
		t.Errorf("%v", err)
	}
}

// Any text can be recorded, and is the same when it is read.
func TestTexts(t *testing.T) {
	l := trail(memStore(t), "n", Keep)
	long := strings.Repeat("é", 1000)
	for _, s := range []string{"", "\x00", "\xff\xfe", "<a&b>\u2028", long, strings.Repeat("x", maxText)} {
		if _, err := l.Append(t.Context(), Record{Actor: s, Verb: s, Object: s, Reason: s, Outcome: s, Lost: []string{s}}); err != nil {
			t.Fatal(err)
		}
	}
	if r := verify(t, l); !r.Intact() {
		t.Errorf("%+v", r)
	}
	es, _, err := l.Entries(t.Context(), time.Time{})
	if err != nil || len(es) != 6 || es[5].Reason != strings.Repeat("x", maxText) || len(es[4].Reason) > maxText {
		t.Errorf("%v %v", es, err)
	}
}

// Since leaves out what is older.
func TestSince(t *testing.T) {
	l := trail(memStore(t), "n", Keep)
	now := time.UnixMilli(1_700_000_000_000)
	l.now = func() time.Time { now = now.Add(time.Minute); return now }
	all := fill(t, l, 5)
	es, unreadable, err := l.Entries(t.Context(), all[3].Time)
	if err != nil || unreadable != 0 || len(es) != 2 || es[0].Seq != 4 {
		t.Errorf("%v %d %v", es, unreadable, err)
	}
}

// far is a store with a way to it, that counts writing transactions.
type far struct {
	kvdb.Store
	txns atomic.Int64
}

func (f *far) Get(ctx context.Context, key string) (kvdb.KV, error) {
	kvdb.Pause(ctx, time.Millisecond)
	return f.Store.Get(ctx, key)
}

func (f *far) Txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	kvdb.Pause(ctx, time.Millisecond)
	if !t.ReadOnly() {
		f.txns.Add(1)
	}
	return f.Store.Txn(ctx, t)
}

// Many changes at once, by goroutines of several processes: none fails because of the others' entries, and those of one process do not get into each other's way.
func TestTxn(t *testing.T) {
	const each = 50
	for _, nodes := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			s := &far{Store: memStore(t)}
			var wg sync.WaitGroup
			for n := range nodes {
				l := trail(s, fmt.Sprint("n", n), Keep)
				for i := range each {
					wg.Go(func() {
						key := fmt.Sprintf("x/%d/%d", n, i)
						res, err := l.Txn(t.Context(), kvdb.Txn{
							If: []kvdb.Cmp{{Key: key, Target: kvdb.CmpAbsent}}, Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: key}, {Kind: kvdb.OpGet, Key: key}},
						}, Record{Verb: "change", Object: key})
						if err != nil || !res.Succeeded || len(res.Gets) != 1 || res.Gets[0].Key != key {
							t.Errorf("%s: %+v, %v", key, res, err)
						}
					})
				}
			}
			wg.Wait()
			if r := verify(t, trail(s, "n", Keep)); !r.Intact() || r.Last != uint64(nodes*each) {
				t.Errorf("%+v", r)
			}
			if n := s.txns.Load(); nodes == 1 && n != each || n > int64(nodes*nodes*each) {
				t.Errorf("%d changes by %d processes took %d transactions", nodes*each, nodes, n)
			}
		})
	}
}

// What does not hold of the change itself is told, with what the change reads then, and leaves no entry.
func TestTxnRefused(t *testing.T) {
	l := trail(memStore(t), "n", Keep)
	txn := kvdb.Txn{
		If: []kvdb.Cmp{{Key: "x", Target: kvdb.CmpAbsent}}, Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: "x", Value: []byte("v")}}, Else: []kvdb.Op{{Kind: kvdb.OpGet, Key: "x"}},
	}
	for i := range 2 {
		res, err := l.Txn(t.Context(), txn, Record{Verb: "change"})
		if err != nil || res.Succeeded != (i == 0) || i == 1 && (len(res.Gets) != 1 || string(res.Gets[0].Value) != "v") {
			t.Errorf("%d: %+v, %v", i, res, err)
		}
	}
	if r := verify(t, l); !r.Intact() || r.Last != 1 {
		t.Errorf("%+v", r)
	}
	l.turn <- struct{}{} // somebody waits for a store that does not answer
	if _, err := l.Txn(t.Context(), kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: "y"}}}, Record{Verb: "change"}); err != nil {
		t.Errorf("kept by another one: %v", err)
	}
}

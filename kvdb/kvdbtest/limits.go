package kvdbtest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

func isErr(err, target error) bool { return errors.Is(err, target) }

func testLimits(e *env) {
	put := func(key string, n int) kvdb.Op {
		return kvdb.Op{Kind: kvdb.OpPut, Key: key, Value: bytes.Repeat([]byte{'v'}, n)}
	}
	puts := func(n, size int) (ops []kvdb.Op) {
		for i := range n {
			ops = append(ops, put(e.key("%03d", i), size))
		}
		return ops
	}
	cmps := func(n int) (cmps []kvdb.Cmp) {
		for i := range n {
			cmps = append(cmps, kvdb.Cmp{Key: e.key("%03d", i), Target: kvdb.CmpAbsent})
		}
		return cmps
	}
	longest := e.prefix + strings.Repeat("k", kvdb.MaxKey-len(e.prefix))
	k := e.key("k")
	for _, c := range []struct {
		name string
		txn  kvdb.Txn
		ok   bool
	}{
		{"as many operations as may be", kvdb.Txn{If: cmps(kvdb.MaxTxnOps), Then: puts(kvdb.MaxTxnOps, 10), Else: puts(kvdb.MaxTxnOps, 10)}, true},
		{"too many operations", kvdb.Txn{Then: puts(kvdb.MaxTxnOps+1, 10)}, false},
		{"too many operations not run", kvdb.Txn{Else: puts(kvdb.MaxTxnOps+1, 10)}, false},
		{"too many comparisons", kvdb.Txn{If: cmps(kvdb.MaxTxnOps + 1)}, false},
		{"largest value", kvdb.Txn{Then: []kvdb.Op{put(k, kvdb.MaxValue)}}, true},
		{"value too large", kvdb.Txn{Then: []kvdb.Op{put(k, kvdb.MaxValue+1)}}, false},
		{"value too large not written", kvdb.Txn{Else: []kvdb.Op{put(k, kvdb.MaxValue+1)}}, false},
		{"values too large together", kvdb.Txn{Then: puts(3, kvdb.MaxValue)}, false},
		{"longest key", kvdb.Txn{Then: []kvdb.Op{put(longest, 1)}}, true},
		{"key too long", kvdb.Txn{Then: []kvdb.Op{put(longest+"k", 1)}}, false},
		{"empty key", kvdb.Txn{Then: []kvdb.Op{put("", 1)}}, false},
		{"key that is no text", kvdb.Txn{Then: []kvdb.Op{put(k+"\xff", 1)}}, false},
		{"empty key compared", kvdb.Txn{If: []kvdb.Cmp{{Target: kvdb.CmpExists}}}, false},
		{"unknown comparison", kvdb.Txn{If: []kvdb.Cmp{{Key: k, Target: 99}}}, false},
		{"no comparison", kvdb.Txn{If: []kvdb.Cmp{{Key: k}}}, false},
		{"unknown operation", kvdb.Txn{Then: []kvdb.Op{{Kind: 99, Key: k}}}, false},
		{"no operation", kvdb.Txn{Then: []kvdb.Op{{Key: k}}}, false},
		{"key put twice", kvdb.Txn{Then: []kvdb.Op{put(k, 1), put(k, 2)}}, false},
		{"key put and deleted", kvdb.Txn{Then: []kvdb.Op{put(k, 1), {Kind: kvdb.OpDelete, Key: k}}}, false},
		{"key deleted twice", kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpDelete, Key: k}, {Kind: kvdb.OpDelete, Key: k}}}, false},
		{"key put in both parts", kvdb.Txn{Then: []kvdb.Op{put(k, 1)}, Else: []kvdb.Op{put(k, 1)}}, true},
	} {
		before := e.revision()
		_, err := e.s.Txn(e.ctx, c.txn)
		switch {
		case c.ok && err != nil:
			e.Errorf("%s: %v", c.name, err)
		case !c.ok && !isErr(err, kvdb.ErrInvalid):
			e.Errorf("%s: got %v, want ErrInvalid", c.name, err)
		case !c.ok && e.revision() != before:
			e.Errorf("%s: was refused, but changed something", c.name)
		}
	}
	if _, err := e.s.Get(e.ctx, ""); !isErr(err, kvdb.ErrInvalid) {
		e.Errorf("get of the empty key: %v", err)
	}
	if _, _, err := e.s.List(e.ctx, strings.Repeat("p", kvdb.MaxKey+1)); !isErr(err, kvdb.ErrInvalid) {
		e.Errorf("list of too long a prefix: %v", err)
	}
}

func testLeaseInvalid(e *env) {
	for _, ttl := range []time.Duration{-time.Second, 0, kvdb.MinTTL - 1, kvdb.MaxTTL + 1} {
		if _, err := e.s.Grant(e.ctx, ttl); !isErr(err, kvdb.ErrInvalid) {
			e.Errorf("lease of %v: %v, want ErrInvalid", ttl, err)
		}
	}
	k := e.key("k")
	for _, op := range []kvdb.Op{
		{Kind: kvdb.OpPut, Key: k, Lease: -1},
		{Kind: kvdb.OpGet, Key: k, Lease: 1},
		{Kind: kvdb.OpDelete, Key: k, Lease: 1},
		{Kind: kvdb.OpDelete, Key: k, Value: []byte("v")},
	} {
		if _, err := e.s.Txn(e.ctx, kvdb.Txn{Then: []kvdb.Op{op}}); !isErr(err, kvdb.ErrInvalid) {
			e.Errorf("%s: %v, want ErrInvalid", fmt.Sprintf("%+v", op), err)
		}
	}
}

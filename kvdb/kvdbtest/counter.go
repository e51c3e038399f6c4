package kvdbtest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tandem-storage/tandem/kvdb"
)

// CountUntil increments the counter at key until stop closes, through whatever
// failures s has, and returns how often. Outcomes that are unknown are found
// out, so that counts of all clients together are exactly the counter's value, unless the store
// loses or doubles changes. name is the client's, unique among those of the counter.
func CountUntil(ctx context.Context, s kvdb.Store, key, name string, stop <-chan struct{}) (int, error) {
	count := 0
	for {
		select {
		case <-stop:
			return count, nil
		default:
		}
		done, err := countOnce(ctx, s, key, name, count+1)
		if err != nil {
			return count, err
		}
		if done {
			count++
		}
	}
}

// countOnce makes the client's nth increment, if nobody comes first. In the
// same change it writes the client's own count, which tells later whether the
// change took effect.
func countOnce(ctx context.Context, s kvdb.Store, key, name string, n int) (bool, error) {
	mine := "increments/" + key + "/" + name
	kv, err := readThrough(ctx, s, key)
	if err != nil {
		return false, err
	}
	own, err := readThrough(ctx, s, mine)
	if err != nil {
		return false, err
	}
	res, err := s.Txn(ctx, kvdb.Txn{
		If: []kvdb.Cmp{{Key: key, Target: kvdb.CmpMod, Revision: kv.Mod}, {Key: mine, Target: kvdb.CmpMod, Revision: own.Mod}},
		Then: []kvdb.Op{
			{Kind: kvdb.OpPut, Key: key, Value: fmt.Appendf(nil, "%d by %s", CounterValue(kv)+1, name)},
			{Kind: kvdb.OpPut, Key: mine, Value: fmt.Append(nil, n)},
		},
	})
	switch {
	case err == nil:
		return res.Succeeded, nil
	case ctx.Err() != nil:
		return false, err
	case errors.Is(err, kvdb.ErrNoLeader):
		applied, err := findOut(ctx, s, mine, n)
		if applied {
			err = fmt.Errorf("kvdbtest: increment %d of %s took effect though the store had said that nothing was changed", n, name)
		}
		return false, err
	case errors.Is(err, kvdb.ErrUnavailable):
		return findOut(ctx, s, mine, n)
	default:
		return false, err
	}
}

// findOut tells whether the client's nth increment took effect. If it has not,
// it never will: the client's count, which it depends on, is written anew.
func findOut(ctx context.Context, s kvdb.Store, mine string, n int) (bool, error) {
	for {
		own, err := readThrough(ctx, s, mine)
		if err != nil {
			return false, err
		}
		if CounterValue(own) == n {
			return true, nil
		}
		_, err = kvdb.CompareAndSwap(ctx, s, mine, own.Mod, fmt.Append(nil, n-1))
		if err == nil {
			return false, nil
		}
		if ctx.Err() != nil {
			return false, err
		}
	}
}

// readThrough reads key, as often as it takes; an absent one is the zero KV.
func readThrough(ctx context.Context, s kvdb.Store, key string) (kvdb.KV, error) {
	for {
		kv, err := s.Get(ctx, key)
		switch {
		case err == nil:
			return kv, nil
		case errors.Is(err, kvdb.ErrNotFound):
			return kvdb.KV{}, nil
		case ctx.Err() != nil, !errors.Is(err, kvdb.ErrNoLeader) && !errors.Is(err, kvdb.ErrUnavailable):
			return kvdb.KV{}, err
		}
	}
}

// CounterValue is the value of a counter.
func CounterValue(kv kvdb.KV) int {
	digits, _, _ := strings.Cut(string(kv.Value), " ")
	n, _ := strconv.Atoi(digits)
	return n
}

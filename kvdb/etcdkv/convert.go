package etcdkv

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tandem-storage/tandem/kvdb"
)

func toCmps(cmps []kvdb.Cmp) []clientv3.Cmp {
	out := make([]clientv3.Cmp, 0, len(cmps))
	for _, c := range cmps {
		switch c.Target {
		case kvdb.CmpMod:
			out = append(out, clientv3.Compare(clientv3.ModRevision(c.Key), "=", int64(c.Revision)))
		case kvdb.CmpValue:
			out = append(out, clientv3.Compare(clientv3.Value(c.Key), "=", string(c.Value)))
		case kvdb.CmpExists:
			out = append(out, clientv3.Compare(clientv3.CreateRevision(c.Key), "!=", 0))
		case kvdb.CmpAbsent:
			out = append(out, clientv3.Compare(clientv3.CreateRevision(c.Key), "=", 0))
		}
	}
	return out
}

func toOps(ops []kvdb.Op) []clientv3.Op {
	out := make([]clientv3.Op, 0, len(ops))
	for _, op := range ops {
		switch op.Kind {
		case kvdb.OpGet:
			out = append(out, clientv3.OpGet(op.Key))
		case kvdb.OpPut:
			out = append(out, clientv3.OpPut(op.Key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease))))
		case kvdb.OpDelete:
			out = append(out, clientv3.OpDelete(op.Key))
		}
	}
	return out
}

func fromKeyValue(kv *mvccpb.KeyValue) kvdb.KV {
	return kvdb.KV{
		Key:     string(kv.Key),
		Value:   kv.Value,
		Created: kvdb.Revision(kv.CreateRevision),
		Mod:     kvdb.Revision(kv.ModRevision),
		Lease:   kvdb.LeaseID(kv.Lease),
	}
}

func fromTxnResponse(t kvdb.Txn, res *clientv3.TxnResponse) kvdb.TxnResult {
	out := kvdb.TxnResult{Succeeded: res.Succeeded, Revision: kvdb.Revision(res.Header.Revision)}
	part := t.Then
	if !res.Succeeded {
		part = t.Else
	}
	for i, op := range part {
		if op.Kind != kvdb.OpGet {
			continue
		}
		var got *kvdb.KV
		if kvs := res.Responses[i].GetResponseRange().GetKvs(); len(kvs) == 1 {
			kv := fromKeyValue(kvs[0])
			got = &kv
		}
		out.Gets = append(out.Gets, got)
	}
	return out
}

// sentinels pairs what etcd definitely refused, or definitely knows, with ours.
// Whatever is not here is an unknown outcome: ErrLeaderChanged, ErrTimeout,
// ErrStopped and every failure of the connection among them.
var sentinels = []struct{ etcd, ours error }{
	{rpctypes.ErrNoLeader, kvdb.ErrNoLeader}, // refused before it was proposed
	{rpctypes.ErrCompacted, kvdb.ErrCompacted},
	{rpctypes.ErrLeaseNotFound, kvdb.ErrLeaseGone},
	{rpctypes.ErrEmptyKey, kvdb.ErrInvalid},
	{rpctypes.ErrTooManyOps, kvdb.ErrInvalid},
	{rpctypes.ErrDuplicateKey, kvdb.ErrInvalid},
	{rpctypes.ErrRequestTooLarge, kvdb.ErrInvalid},
	{rpctypes.ErrLeaseTTLTooLarge, kvdb.ErrInvalid},
	{rpctypes.ErrUserEmpty, kvdb.ErrInvalid},
	{rpctypes.ErrAuthFailed, kvdb.ErrInvalid},
	{rpctypes.ErrPermissionDenied, kvdb.ErrInvalid},
}

// fromEtcd tells definite refusals from unknown outcomes.
func fromEtcd(err error) error {
	if err == nil {
		return nil
	}
	for _, s := range sentinels {
		if errors.Is(err, s.etcd) {
			return fmt.Errorf("%w: %w", s.ours, err)
		}
	}
	return fmt.Errorf("%w: %w", kvdb.ErrUnavailable, err)
}

// outcome is fromEtcd for a request made with ctx, whose end is told as such.
func outcome(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if mapped := fromEtcd(err); !errors.Is(mapped, kvdb.ErrUnavailable) || ctx.Err() == nil || errors.Is(mapped, ctx.Err()) {
		return mapped
	}
	return fmt.Errorf("%w: %w: %w", kvdb.ErrUnavailable, ctx.Err(), err)
}

package etcdkv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/eventpipe"
)

// Watch implements kvdb.Store. The etcd client resumes over lost connections
// by itself; a watch that etcd ends, because a member has lost its leader for
// one, is begun again here.
func (s *Store) Watch(ctx context.Context, prefix string, after kvdb.Revision) <-chan kvdb.Event {
	pipe := eventpipe.New()
	if err := s.checkWatch(prefix, after); err != nil {
		pipe.End(err)
		return pipe.C()
	}
	go func() { pipe.End(s.feed(ctx, pipe, prefix, after)) }()
	return pipe.C()
}

func (s *Store) checkWatch(prefix string, after kvdb.Revision) error {
	if s.open.Err() != nil {
		return kvdb.ErrClosed
	}
	if after < 0 {
		return fmt.Errorf("%w: watch after revision %d", kvdb.ErrInvalid, after)
	}
	return kvdb.CheckPrefix(prefix)
}

func (s *Store) feed(ctx context.Context, pipe *eventpipe.Pipe, prefix string, after kvdb.Revision) error {
	pause := retryFirst
	for {
		before := after
		err := s.feedOnce(ctx, pipe, prefix, &after)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case s.open.Err() != nil:
			return kvdb.ErrClosed
		case errors.Is(err, kvdb.ErrCompacted), errors.Is(err, kvdb.ErrInvalid):
			return err
		}
		if after != before {
			pause = retryFirst
		}
		s.o.Logger.Debug("watch interrupted", zap.String("prefix", prefix), zap.Int64("revision", int64(after)), zap.Error(err))
		select {
		case <-time.After(pause):
			pause = min(2*pause, retryMost)
		case <-ctx.Done():
		case <-s.open.Done():
		}
	}
}

// feedOnce runs one watch of the etcd client until etcd ends it. after is moved
// on by whole revisions, which one response is never less than.
func (s *Store) feedOnce(ctx context.Context, pipe *eventpipe.Pipe, prefix string, after *kvdb.Revision) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.open, cancel)()
	c, err := s.admitted(ctx, prefix)
	if err != nil {
		return err
	}
	responses := c.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(int64(*after)+1))
	for res := range responses {
		if err := res.Err(); err != nil {
			return fromEtcd(err)
		}
		for _, e := range res.Events {
			if !pipe.Send(ctx, s.open.Done(), fromEvent(e)) {
				return ctx.Err()
			}
		}
		if n := len(res.Events); n > 0 {
			*after = kvdb.Revision(res.Events[n-1].Kv.ModRevision)
		}
	}
	return fmt.Errorf("%w: etcd ended the watch", kvdb.ErrUnavailable)
}

// admitted returns the client once etcd has let it read the prefix. A watch that
// is refused ends with a text only, and does not renew a token that has run
// out; a read has a typed error, and does.
func (s *Store) admitted(ctx context.Context, prefix string) (*clientv3.Client, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	c, err := s.connected(ctx)
	if err != nil {
		return nil, err
	}
	_, err = c.Get(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	return c, outcome(ctx, err)
}

func fromEvent(e *clientv3.Event) kvdb.Event {
	if e.Type == mvccpb.Event_DELETE {
		return kvdb.Event{Type: kvdb.EventDelete, KV: kvdb.KV{Key: string(e.Kv.Key), Mod: kvdb.Revision(e.Kv.ModRevision)}}
	}
	return kvdb.Event{Type: kvdb.EventPut, KV: fromKeyValue(e.Kv)}
}

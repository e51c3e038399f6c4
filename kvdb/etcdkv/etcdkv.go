// Package etcdkv is the store on an etcd cluster that is operated beside
// tandemd. It is the only package that uses the etcd client.
//
// A change is sent once. When no answer comes back, its outcome is unknown and
// the caller gets kvdb.ErrUnavailable; only what was definitely refused, and
// what changes nothing, is sent again.
package etcdkv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/connectivity"

	"github.com/tandem-storage/tandem/kvdb"
)

// Options of a Store. Endpoints is needed.
type Options struct {
	// Endpoints are client URLs of etcd members, "https://host:2379". All of them: each may fail.
	Endpoints []string

	// TLS is used for https endpoints; it may bring a client certificate.
	TLS *tls.Config

	// Username and Password for etcd's own authentication. Both or none.
	Username string
	Password string

	// RequestTimeout bounds a request whose context has no deadline. Default 10 s.
	RequestTimeout time.Duration

	// KeepAliveTime is how long a connection may be silent before it is probed, and
	// KeepAliveTimeout how long the answer may take before it is given up. Defaults
	// 5 s (etcd refuses to be probed more often) and 3 s.
	KeepAliveTime    time.Duration
	KeepAliveTimeout time.Duration

	Logger *zap.Logger // nil: none
}

func (o Options) check() error {
	switch {
	case len(o.Endpoints) == 0:
		return fmt.Errorf("%w: etcdkv: no endpoints", kvdb.ErrInvalid)
	case (o.Username == "") != (o.Password == ""):
		return fmt.Errorf("%w: etcdkv: user name and password go together", kvdb.ErrInvalid)
	case o.KeepAliveTime != 0 && o.KeepAliveTime < 5*time.Second:
		return fmt.Errorf("%w: etcdkv: keep-alive time of %v, etcd takes no less than 5s", kvdb.ErrInvalid, o.KeepAliveTime)
	}
	return nil
}

// Store implements kvdb.Store.
type Store struct {
	o    Options
	open context.Context // until Close
	end  context.CancelFunc
	term atomic.Uint64 // see Term

	mu struct {
		sync.Mutex
		login *login
	}
}

var _ kvdb.Store = (*Store)(nil)

// Open returns a store over the cluster. It does not wait for it: requests do,
// within their contexts, so a node can start while etcd is down.
func Open(o Options) (*Store, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = 10 * time.Second
	}
	if o.KeepAliveTime == 0 {
		o.KeepAliveTime = 5 * time.Second
	}
	if o.KeepAliveTimeout == 0 {
		o.KeepAliveTimeout = 3 * time.Second
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	s := &Store{o: o}
	s.open, s.end = context.WithCancel(context.Background())
	return s, nil
}

// loginTimeout bounds one attempt to log in.
const loginTimeout = 5 * time.Second

// connected returns the client once a connection to a member stands. An error
// means that nothing was sent.
func (s *Store) connected(ctx context.Context) (*clientv3.Client, error) {
	c, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	conn := c.ActiveConnection()
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return c, nil
		}
		conn.Connect()
		if !conn.WaitForStateChange(ctx, state) {
			return nil, fmt.Errorf("%w: no connection to any of %v: %w", kvdb.ErrNoLeader, s.o.Endpoints, ctx.Err())
		}
	}
}

// login is one attempt to make the client; c and err are set when done closes.
type login struct {
	done chan struct{}
	c    *clientv3.Client
	err  error
}

// client waits for the client: with a password, making it takes a member that answers.
func (s *Store) client(ctx context.Context) (*clientv3.Client, error) {
	l := s.login()
	select {
	case <-l.done:
		return l.c, l.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: not logged in to any of %v: %w", kvdb.ErrNoLeader, s.o.Endpoints, ctx.Err())
	}
}

// login returns the attempt that is under way or has succeeded, or else begins one.
func (s *Store) login() *login {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.mu.login; l != nil {
		return l
	}
	l := &login{done: make(chan struct{})}
	s.mu.login = l
	go func() {
		defer close(l.done)
		if l.c, l.err = s.newClient(); l.err == nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.login = nil
	}()
	return l
}

func (s *Store) newClient() (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            s.o.Endpoints,
		TLS:                  s.o.TLS,
		Username:             s.o.Username,
		Password:             s.o.Password,
		DialTimeout:          loginTimeout,
		DialKeepAliveTime:    s.o.KeepAliveTime,
		DialKeepAliveTimeout: s.o.KeepAliveTimeout,
		PermitWithoutStream:  true,
		Logger:               s.o.Logger,
		Context:              s.open,
	})
	if err == nil {
		return c, nil
	}
	if s.open.Err() != nil {
		return nil, kvdb.ErrClosed
	}
	if mapped := fromEtcd(err); errors.Is(mapped, kvdb.ErrInvalid) {
		return nil, mapped
	}
	return nil, fmt.Errorf("%w: log in to any of %v: %w", kvdb.ErrNoLeader, s.o.Endpoints, err)
}

// Pauses between attempts.
const (
	retryFirst = 20 * time.Millisecond
	retryMost  = 250 * time.Millisecond
)

// do runs one request until it has an answer or ctx ends.
func (s *Store) do(ctx context.Context, repeatable bool, attempt func(context.Context, *clientv3.Client) error) error {
	if s.open.Err() != nil {
		return kvdb.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	pause := retryFirst
	for {
		c, err := s.connected(ctx)
		if err == nil {
			err = outcome(ctx, attempt(clientv3.WithRequireLeader(ctx), c))
		}
		switch {
		case err == nil:
			return nil
		case s.open.Err() != nil && (repeatable || errors.Is(err, kvdb.ErrNoLeader)):
			return kvdb.ErrClosed
		case errors.Is(err, kvdb.ErrNoLeader):
		case errors.Is(err, kvdb.ErrUnavailable) && repeatable:
		default:
			return err
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, retryMost)
		case <-ctx.Done():
			if s.open.Err() != nil {
				return kvdb.ErrClosed
			}
			if errors.Is(err, ctx.Err()) {
				return err
			}
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// bound ends ctx when the store is closed, and gives it a deadline if it has none.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	var cancel context.CancelFunc
	if _, has := ctx.Deadline(); has {
		ctx, cancel = context.WithCancel(ctx)
	} else {
		ctx, cancel = context.WithTimeout(ctx, s.o.RequestTimeout)
	}
	stop := context.AfterFunc(s.open, cancel)
	return ctx, func() { stop(); cancel() }
}

// Get implements kvdb.Store.
func (s *Store) Get(ctx context.Context, key string) (kvdb.KV, error) {
	res, err := s.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: key}}})
	if err != nil {
		return kvdb.KV{}, err
	}
	if res.Gets[0] == nil {
		return kvdb.KV{}, fmt.Errorf("%w: %q", kvdb.ErrNotFound, key)
	}
	return *res.Gets[0], nil
}

// List implements kvdb.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]kvdb.KV, kvdb.Revision, error) {
	if err := kvdb.CheckPrefix(prefix); err != nil {
		return nil, 0, err
	}
	var res *clientv3.GetResponse
	err := s.do(ctx, true, func(ctx context.Context, c *clientv3.Client) (err error) {
		res, err = c.Get(ctx, prefix, clientv3.WithPrefix())
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	kvs := make([]kvdb.KV, 0, len(res.Kvs))
	for _, kv := range res.Kvs {
		kvs = append(kvs, fromKeyValue(kv))
	}
	s.sawTerm(res.Header.RaftTerm)
	return kvs, kvdb.Revision(res.Header.Revision), nil
}

// Term is the highest term of the cluster's leader that an answer told of: it grows when the leader changes. 0 before the first answer.
func (s *Store) Term() uint64 { return s.term.Load() }

func (s *Store) sawTerm(t uint64) {
	for {
		old := s.term.Load()
		if t <= old || s.term.CompareAndSwap(old, t) {
			return
		}
	}
}

// Txn implements kvdb.Store.
func (s *Store) Txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	if err := t.Check(); err != nil {
		return kvdb.TxnResult{}, err
	}
	then := toOps(t.Then)
	if len(t.If) > 0 && len(then)+len(t.Else) == 0 {
		// etcd answers a transaction without operations from what one member has, which may be behind (txn.IsTxnSerializable):
		// a read makes it ask the others.
		then = []clientv3.Op{clientv3.OpGet(t.If[0].Key, clientv3.WithCountOnly())}
	}
	var res *clientv3.TxnResponse
	err := s.do(ctx, t.ReadOnly(), func(ctx context.Context, c *clientv3.Client) (err error) {
		res, err = c.Txn(ctx).If(toCmps(t.If)...).Then(then...).Else(toOps(t.Else)...).Commit()
		return err
	})
	if err != nil {
		return kvdb.TxnResult{}, err
	}
	s.sawTerm(res.Header.RaftTerm)
	return fromTxnResponse(t, res), nil
}

// Close implements kvdb.Store.
func (s *Store) Close() error {
	s.end()
	s.mu.Lock()
	l := s.mu.login
	s.mu.login = nil
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	<-l.done // which s.end hastens
	if l.c == nil {
		return nil
	}
	if err := l.c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("etcdkv: close: %w", err)
	}
	return nil
}

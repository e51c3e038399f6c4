package raftkv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/eventpipe"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// Client is the store of a node that is no member.
type Client struct {
	*store
	o     ClientOptions
	peers *pool

	mu struct {
		sync.Mutex
		current int // index of the endpoint to use
	}
}

// OpenClient returns a store over the members at the endpoints. It does not
// wait for them: requests do, within their contexts.
func OpenClient(o ClientOptions) (*Client, error) {
	if len(o.Endpoints) == 0 {
		return nil, fmt.Errorf("%w: raftkv: no endpoints", kvdb.ErrInvalid)
	}
	defaultTo(&o.RequestTimeout, 10*time.Second)
	defaultTo(&o.Logger, zap.NewNop())
	c := &Client{o: o, peers: newPool(o.TLS)}
	c.mu.current = rand.IntN(len(o.Endpoints)) // spread the clients over the members
	c.store = newStore(c, o.RequestTimeout)
	return c, nil
}

// Close implements kvdb.Store.
func (c *Client) Close() error {
	return errors.Join(c.store.Close(), c.peers.close())
}

// Status returns the view of the first member that answers.
func (c *Client) Status(ctx context.Context) (Status, error) {
	err := errors.New("raftkv: nobody was asked")
	for range c.o.Endpoints {
		var st Status
		if st, err = memberStatus(ctx, c.peers, c.endpoint()); err == nil && st.ClusterID != "" {
			return st, nil
		}
		c.leave(c.endpoint())
	}
	return Status{}, notServed(err)
}

// dialTimeout bounds the wait for one endpoint while there are others.
const dialTimeout = time.Second

// route implements router: the endpoint that served last, or the next that can be connected to.
func (c *Client) route(ctx context.Context) (backend, error) {
	return c.connect(ctx)
}

func (c *Client) connect(ctx context.Context) (*remote, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	address := c.endpoint()
	conn, err := c.peers.ready(ctx, address)
	if err != nil {
		c.leave(address)
		return nil, notServed(err)
	}
	return newRemote(conn, address, false, c.o.ClusterID), nil
}

func (c *Client) endpoint() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.o.Endpoints[c.mu.current]
}

// leave turns to the next endpoint unless another caller already did.
func (c *Client) leave(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.o.Endpoints[c.mu.current] == address {
		c.mu.current = (c.mu.current + 1) % len(c.o.Endpoints)
	}
}

func (c *Client) failed(b backend) { c.leave(b.(*remote).address) }

// watch implements router. It goes on at another endpoint after the last
// revision that it has whole.
func (c *Client) watch(ctx context.Context, closed <-chan struct{}, prefix string, after kvdb.Revision) <-chan kvdb.Event {
	pipe := eventpipe.New()
	go func() {
		pause := retryFirst
		for {
			before := after
			err := c.watchOnce(ctx, pipe, prefix, &after)
			switch {
			case ctx.Err() != nil:
				pipe.End(ctx.Err())
				return
			case c.open.Err() != nil:
				pipe.End(kvdb.ErrClosed)
				return
			case errors.Is(err, kvdb.ErrCompacted), errors.Is(err, kvdb.ErrInvalid):
				pipe.End(err)
				return
			}
			if after != before {
				pause = retryFirst
			}
			c.o.Logger.Debug("watch interrupted", zap.String("prefix", prefix), zap.Int64("revision", int64(after)), zap.Error(err))
			select {
			case <-ctx.Done():
			case <-closed:
			case <-time.After(pause):
				pause = min(2*pause, retryMost)
			}
		}
	}()
	return pipe.C()
}

// watchOnce feeds the pipe from one endpoint until that fails.
func (c *Client) watchOnce(ctx context.Context, pipe *eventpipe.Pipe, prefix string, after *kvdb.Revision) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.open, cancel)()
	r, err := c.connect(ctx)
	if err != nil {
		return err
	}
	dead := time.AfterFunc(watchDead, cancel)
	defer dead.Stop()
	stream, err := r.kv.Watch(ctx, &kvdbpb.WatchRequest{Origin: r.origin, Prefix: prefix, After: int64(*after)})
	if err != nil {
		c.leave(r.address)
		return err
	}
	for {
		dead.Reset(watchDead)
		reply, err := stream.Recv()
		if err := r.check(ctx, reply, err); err != nil {
			c.leave(r.address)
			return err
		}
		dead.Stop() // a slow receiver is not a dead endpoint
		for _, p := range reply.GetEvents() {
			if !pipe.Send(ctx, c.open.Done(), eventFromProto(p)) {
				return ctx.Err()
			}
		}
		*after = kvdb.Revision(reply.GetThrough())
	}
}

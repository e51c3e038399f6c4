package etcdkv

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/leasekeep"
)

// Grant implements kvdb.Store. etcd counts whole seconds, so ttl is rounded up.
// A grant whose answer is lost leaves a lease that ends by itself.
//
// The client's own KeepAlive is not used: it does not tell when the renewal
// that was answered had been sent, from which Expires is counted.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (kvdb.Lease, error) {
	if err := kvdb.CheckTTL(ttl); err != nil {
		return nil, err
	}
	var res *clientv3.LeaseGrantResponse
	var sent time.Time
	err := s.do(ctx, false, func(ctx context.Context, c *clientv3.Client) (err error) {
		sent = time.Now()
		res, err = c.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
		return err
	})
	if err != nil {
		return nil, err
	}
	return leasekeep.Keep(leasekeep.Config{
		ID:     kvdb.LeaseID(res.ID),
		TTL:    time.Duration(res.TTL) * time.Second,
		Sent:   sent,
		Closed: s.open.Done(),
		Renew: func(ctx context.Context) error {
			return s.do(ctx, true, func(ctx context.Context, c *clientv3.Client) error {
				_, err := c.KeepAliveOnce(ctx, res.ID)
				return err
			})
		},
		Revoke: func(ctx context.Context) error {
			return s.do(ctx, false, func(ctx context.Context, c *clientv3.Client) error {
				_, err := c.Revoke(ctx, res.ID)
				return err
			})
		},
	}), nil
}

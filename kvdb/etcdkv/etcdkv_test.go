package etcdkv_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/etcdkv"
	"github.com/tandem-storage/tandem/kvdb/kvdbtest"
)

func TestSuiteSingle(t *testing.T) {
	kvdbtest.Run(t, func(t *testing.T) kvdbtest.Harness { return newCluster(t, 1).harness() })
}

func TestSuiteThreeMembers(t *testing.T) {
	kvdbtest.Run(t, func(t *testing.T) kvdbtest.Harness { return newCluster(t, 3).harness() })
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]etcdkv.Options{
		"no endpoints":      {},
		"user, no password": {Endpoints: []string{"http://127.0.0.1:1"}, Username: "u"},
		"probed too often":  {Endpoints: []string{"http://127.0.0.1:1"}, KeepAliveTime: time.Second},
	} {
		if _, err := etcdkv.Open(o); !errors.Is(err, kvdb.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// Nobody listens: nothing was sent, and that is definite.
func TestNobodyThere(t *testing.T) {
	for name, o := range map[string]etcdkv.Options{
		"":                {Endpoints: []string{"http://" + kvdbtest.FreeAddress(t)}},
		"with a password": {Endpoints: []string{"http://" + kvdbtest.FreeAddress(t)}, Username: "u", Password: "p"},
	} {
		s := open(t, o)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := kvdb.Put(ctx, s, "k", nil)
		cancel()
		if !errors.Is(err, kvdb.ErrNoLeader) || errors.Is(err, kvdb.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("put %s: %v, want ErrNoLeader and the deadline", name, err)
		}
	}
}

// A store opened while etcd is down works once it is up.
func TestEtcdComesLater(t *testing.T) {
	c := newCluster(t, 1)
	c.kill(c.members[0])
	s := c.open(t)
	errs := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := kvdb.Put(ctx, s, "k", []byte("v"))
		errs <- err
	}()
	c.start(c.members[0])
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

func TestAuth(t *testing.T) {
	c := newCluster(t, 1)
	a := c.admin(t, "", "")
	ctx := t.Context()
	for _, step := range []func() error{
		func() error { _, err := a.UserAdd(ctx, "root", "rootpw"); return err },
		func() error { _, err := a.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := a.RoleAdd(ctx, "tandem"); return err },
		func() error { _, err := a.RoleGrantPermission(ctx, "tandem", "/tandem/", "/tandem0", 2); return err },
		func() error { _, err := a.UserAdd(ctx, "tandem", "secret"); return err },
		func() error { _, err := a.UserGrantRole(ctx, "tandem", "tandem"); return err },
		func() error { _, err := a.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	o := c.options(t)
	o.Username, o.Password = "tandem", "secret"
	s := open(t, o)
	rev, err := kvdb.Put(ctx, s, "/tandem/k", []byte("v"))
	if err != nil {
		t.Fatal(err)
	}
	if ev := <-s.Watch(ctx, "/tandem/", rev-1); ev.Err != nil || string(ev.KV.Value) != "v" {
		t.Errorf("watch: %+v", ev)
	}
	if _, err := kvdb.Put(ctx, s, "/elsewhere", nil); !errors.Is(err, kvdb.ErrInvalid) {
		t.Errorf("put without permission: %v, want ErrInvalid", err)
	}
	if ev := <-s.Watch(ctx, "/elsewhere", 0); !errors.Is(ev.Err, kvdb.ErrInvalid) {
		t.Errorf("watch without permission: %+v, want ErrInvalid", ev)
	}
	o.Password = "wrong"
	if _, err := kvdb.Put(ctx, open(t, o), "/tandem/k", nil); !errors.Is(err, kvdb.ErrInvalid) {
		t.Errorf("wrong password: %v, want ErrInvalid", err)
	}
	anonymous := c.open(t)
	if _, err := kvdb.Put(ctx, anonymous, "/tandem/k", nil); !errors.Is(err, kvdb.ErrInvalid) {
		t.Errorf("no password: %v, want ErrInvalid", err)
	}

	// Tokens are forgotten by a restarted server; the store logs in again.
	c.kill(c.members[0])
	c.start(c.members[0])
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err = s.Get(ctx, "/tandem/k"); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestWrongCertificate(t *testing.T) {
	c := newCluster(t, 1)
	o := c.options(t)
	o.TLS = kvdbtest.NewAuthority(t).Client("stranger")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := kvdb.Put(ctx, open(t, o), "k", nil); !errors.Is(err, kvdb.ErrNoLeader) {
		t.Errorf("put with certificates of another authority: %v, want ErrNoLeader", err)
	}
}

// TestCompareAsksTheMajority: a transaction that only compares is not answered by a member that is alone.
func TestCompareAsksTheMajority(t *testing.T) {
	c := newCluster(t, 3)
	o := c.options(t)
	o.Endpoints = o.Endpoints[:1]
	s := open(t, o)
	defer func() { _ = s.Close() }()
	mod, err := kvdb.Put(t.Context(), s, "key", []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	compare := func(within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		res, err := s.Txn(ctx, kvdb.Txn{If: []kvdb.Cmp{{Key: "key", Target: kvdb.CmpMod, Revision: mod}}})
		if err == nil && !res.Succeeded {
			t.Error("the key is not what it is")
		}
		return err
	}
	if err := compare(time.Minute); err != nil {
		t.Fatal(err)
	}
	c.kill(c.members[1])
	c.kill(c.members[2])
	if err := compare(time.Second); err == nil {
		t.Error("one of three members answered alone")
	}
}

// Counters go on while members are killed, one at a time, and come back: no
// increment is lost, none is applied twice, and a watch sees each.
func TestMembersKilled(t *testing.T) {
	c := newCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watched := c.open(t).Watch(ctx, "counter", 0)

	const clients = 4
	stop := make(chan struct{})
	counts := make([]int, clients)
	errs := make([]error, clients)
	var wg sync.WaitGroup
	for i := range clients {
		s := c.open(t)
		wg.Go(func() { counts[i], errs[i] = kvdbtest.CountUntil(ctx, s, "counter", strconv.Itoa(i), stop) })
	}
	for range 2 {
		for _, victim := range []*member{c.leader(t), c.members[0]} {
			c.kill(victim)
			c.progress(t, 10)
			c.start(victim)
			c.progress(t, 10)
		}
	}
	close(stop)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	kv, err := c.open(t).Get(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}
	if got := kvdbtest.CounterValue(kv); got != total {
		t.Errorf("the counter is at %d after %d increments", got, total)
	}
	for n := 1; n <= total; n++ {
		ev := <-watched
		if ev.Err != nil || kvdbtest.CounterValue(ev.KV) != n {
			t.Fatalf("event %d: %+v", n, ev)
		}
	}
	t.Logf("%d increments", total)
}

// progress waits until the cluster has made n more changes.
func (c *cluster) progress(t testing.TB, n int) {
	t.Helper()
	s := c.open(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, rev, err := s.List(ctx, "progress")
	if err != nil {
		t.Fatal(err)
	}
	w := s.Watch(ctx, "counter", rev)
	for range n {
		if ev := <-w; ev.Err != nil {
			t.Fatal(fmt.Errorf("no progress: %w", ev.Err))
		}
	}
}

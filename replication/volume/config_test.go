package volume

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// lostConfigs is a kvdb that puts one change in force, loses the answer, and is out of reach from then on.
type lostConfigs struct {
	*testConfigs
	cause string // of that change
	lost  func() // called when it is in force

	gone  bool // with testConfigs.mu
	asked int  // attempts since
}

func (k *lostConfigs) Load(ctx context.Context, v replication.VolumeID) (*replication.Config, uint64, error) {
	if k.attempts() > 0 {
		return nil, 0, errors.New("no majority")
	}
	return k.testConfigs.Load(ctx, v)
}

func (k *lostConfigs) Swap(ctx context.Context, prev *replication.Config, rev uint64, next *replication.Config, d replication.DomainID) (uint64, error) {
	k.mu.Lock()
	if k.gone {
		k.asked++
		k.mu.Unlock()
		return 0, fmt.Errorf("%w: no majority", ErrNotSent)
	}
	hit := next.History[len(next.History)-1].Cause == k.cause
	k.mu.Unlock()
	r, err := k.testConfigs.Swap(ctx, prev, rev, next, d)
	if err != nil || !hit {
		return r, err
	}
	k.mu.Lock()
	k.gone, k.cause, k.asked = true, "", 1
	k.mu.Unlock()
	k.lost()
	return 0, errors.New("leader lost")
}

func (k *lostConfigs) attempts() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.gone {
		return 0
	}
	return k.asked
}

func (k *lostConfigs) back() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = false
}

// TestJoinOfUnknownOutcome: a link carries the answer of the kvdb and the joiner's session, and is cut when the join
// is in force. Nothing is acknowledged without the joiner: it may be all that is left (I10).
func TestJoinOfUnknownOutcome(t *testing.T) {
	c := newTestCluster(t, 64<<20)
	a, b := c.nodes[0], c.nodes[1]
	kv := &lostConfigs{testConfigs: c.kv, cause: "join", lost: func() { c.net.Down(b.id) }}
	a.m.o.Configs = kv
	v := a.attach()
	w := startWriter(v, 4)
	c.eventually("writes", func() bool { return w.count() > 100 })
	c.net.Down(b.id)
	c.awaitInSync(1)
	c.net.Up(b.id)
	c.awaitInSync(2)
	c.eventually("a stall", func() bool { return v.Status().Stall == core.StallKVDB && kv.attempts() > 5 })
	before, asked := w.count(), kv.attempts()
	c.eventually("more attempts", func() bool { return kv.attempts() > asked+20 })
	if n := w.count(); n > before {
		t.Errorf("%d writes acknowledged without a member of the in-sync set in force; stall %q", n-before, v.Status().Stall)
	}
	kv.back()
	c.net.Up(b.id)
	c.eventually("writes again", func() bool { return w.count() > before+100 })
	c.awaitInSync(2)
	for _, err := range w.finish() {
		t.Error(err)
	}
	detach(t, a)
	c.compare()
}

// onlyActivated has nothing changed after the takeover.
type onlyActivated struct {
	*testConfigs
	lost func()
}

func (k *onlyActivated) Swap(ctx context.Context, prev *replication.Config, rev uint64, next *replication.Config, d replication.DomainID) (uint64, error) {
	r, err := k.testConfigs.Swap(ctx, prev, rev, next, d)
	if err == nil && next.History[len(next.History)-1].Cause == "activate" {
		k.refuse(ErrNotSent)
		k.lost()
	}
	return r, err
}

// TestInForceBeforeItServes: a takeover is in force in the kvdb, and an in-sync replica cannot be told of it. An import that did not know would make the replicas' older
// configuration the one in force, by which the replica that is not reached may be taken over alone when this one has come to serve without it.
func TestInForceBeforeItServes(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	a.m.o.Configs = &onlyActivated{c.kv, func() { c.net.Down(b.id) }}
	attached := make(chan *Volume, 1)
	go func() { attached <- a.attach() }()
	var v *Volume
	c.eventually("the takeover to be in force", func() bool {
		v = a.m.Volume(c.vol)
		return v != nil && v.InForce() != nil
	})
	if got, want := v.InForce(), c.kv.config(); got.Epoch != want.Epoch || got.Gen != want.Gen || isClosed(v.serving) {
		t.Errorf("epoch %d is in force, the kvdb has %d; it serves: %v", got.Epoch, want.Epoch, isClosed(v.serving))
	}
	c.kv.refuse(nil)
	c.net.Up(b.id)
	if <-attached != v || v.InForce() == nil {
		t.Error("it does not serve")
	}
	detach(t, a)
	if v.InForce() != nil {
		t.Error("it is in force, and detached")
	}
}

// TestWritesWhileResyncStarts: a healthy volume does not wait for a kvdb that is lost when the resync of another
// replica starts (G6).
func TestWritesWhileResyncStarts(t *testing.T) {
	c := newTestCluster(t, 64<<20)
	a, b := c.nodes[0], c.nodes[1]
	kv := &lostConfigs{testConfigs: c.kv, cause: "start resync", lost: func() {}}
	a.m.o.Configs = kv
	v := a.attach()
	w := startWriter(v, 4)
	c.net.Down(b.id)
	c.awaitInSync(1)
	c.net.Up(b.id)
	for range 5 {
		n, asked := w.count(), kv.attempts()
		c.eventually("more attempts and writes", func() bool { return kv.attempts() > asked+5 && w.count() > n+20 })
	}
	if s := v.Status().Stall; s != core.StallNone {
		t.Errorf("stall %q", s)
	}
	kv.back()
	c.awaitInSync(2)
	for _, err := range w.finish() {
		t.Error(err)
	}
	detach(t, a)
	c.compare()
}

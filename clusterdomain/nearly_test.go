package clusterdomain

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/memkv"
)

// TestNearly: what a node says of itself is told at once, but for how full its pools are by a little.
func TestNearly(t *testing.T) {
	was := Node{Name: "a", Pools: []Pool{{UUID: "p", Total: 256 << 20, Used: 100 << 20}, {UUID: "q", Total: 1 << 20}}, Fragile: 1}
	for name, tt := range map[string]struct {
		change func(*Node)
		nearly bool
	}{
		"the same":          {func(*Node) {}, true},
		"a little more":     {func(n *Node) { n.Pools[0].Used += 1 << 20 }, true},
		"a little less":     {func(n *Node) { n.Pools[0].Used -= 1 << 20 }, true},
		"more":              {func(n *Node) { n.Pools[0].Used += 1<<20 + 1 }, false},
		"less":              {func(n *Node) { n.Pools[0].Used -= 1<<20 + 1 }, false},
		"more of a small":   {func(n *Node) { n.Pools[1].Used += 8 << 10 }, false},
		"larger":            {func(n *Node) { n.Pools[0].Total++ }, false},
		"another replica":   {func(n *Node) { n.Pools[0].Provisioned++ }, false},
		"another pool":      {func(n *Node) { n.Pools[1].UUID = "r" }, false},
		"a pool less":       {func(n *Node) { n.Pools = n.Pools[:1] }, false},
		"another device":    {func(n *Node) { n.Fragile++ }, false},
		"another address":   {func(n *Node) { n.Address = "elsewhere" }, false},
		"another of labels": {func(n *Node) { n.Labels = map[string]string{"rack": "1"} }, false},
	} {
		n := was
		n.Pools = append([]Pool(nil), was.Pools...)
		tt.change(&n)
		used := n.Pools[0].Used
		if n.nearly(was) != tt.nearly || n.Pools[0].Used != used {
			t.Errorf("%s: nearly is %v, used %d", name, n.nearly(was), n.Pools[0].Used-used)
		}
	}
}

// impatient keeps reads waiting that are in no hurry, until they are given up.
type impatient struct {
	kvdb.Store
	waits chan struct{}
}

func (s *impatient) List(ctx context.Context, prefix string) ([]kvdb.KV, kvdb.Revision, error) {
	if kvdb.Patience(ctx) > 0 {
		s.waits <- struct{}{}
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}
	return s.Store.List(ctx, prefix)
}

// TestPollGivesWay: what is read in any case delays neither a change nor who asks.
func TestPollGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		slow := &impatient{srv.Open(), make(chan struct{})}
		a, b := node(t, slow, "n1", "a", volumes{}), node(t, srv.Open(), "n2", "b", volumes{})
		defer run(t, a, b)()
		for range 2 { // the second one goes on after the first gave way
			<-slow.waits
			began := time.Now()
			if err := a.Refresh(t.Context()); err != nil || time.Since(began) != 0 {
				t.Errorf("refreshed after %v: %v", time.Since(began), err)
			}
		}
		<-slow.waits
		if _, err := b.Deactivate(t.Context(), Change{Domain: "a", PeerLost: true, Actor: "op"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := a.DomainState("a"); s == Active {
			t.Errorf("a change is not seen while a poll waits: %s", s)
		}
		go func() { // the end of all gives way to none
			for range slow.waits {
			}
		}()
		t.Cleanup(func() { close(slow.waits) })
	})
}

package clusterdomain

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// TestFailoverRandom lets two sites of two nodes lose and find each other and the kvdb at random, its leaders change, and an
// operator fence and activate domains, for an hour. At every transaction of an arbiter that succeeds:
// no node of the domain is registered, the last one is long enough ago, the node that did it has had a healthy
// kvdb for as long as it says, and the other domain is not out of service by an arbiter too.
func TestFailoverRandom(t *testing.T) {
	fences := 0
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) { fences += wildHour(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d failovers", fences)
	if fences < 10 {
		t.Errorf("%d failovers: the test hardly tests anything", fences)
	}
}

func wildHour(t *testing.T, seed uint64) (fences int) {
	const confirm, interval = 5 * time.Second, 2 * time.Minute
	r := rand.New(rand.NewPCG(seed, 18))
	vols := newVolumes("v1", "v2")
	names := []string{"a1", "a2", "b1", "b2"}
	s := newSitesWith(t, vols, func(o *Options) {
		o.TTL, o.Failover.Confirm, o.Failover.MinInterval, o.Logger = 5*time.Second, confirm, interval, nil
	}, names...)
	defer s.end()
	ill := map[string]time.Time{} // when a node last had no kvdb, or its leader changed
	var last time.Time
	look := s.srv.Open()
	s.fenceWith(func(node string, do func() (kvdb.TxnResult, error)) (kvdb.TxnResult, error) {
		res, err := do()
		if err != nil || !res.Succeeded {
			return res, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		fences++
		now := time.Now()
		if !last.IsZero() && now.Sub(last) < interval-time.Second {
			t.Errorf("%s: a failover %v after the last one", node, now.Sub(last))
		}
		last = now
		if d := now.Sub(ill[node]); d < confirm {
			t.Errorf("%s: a failover %v after its kvdb was not healthy", node, d)
		}
		doms, _, err := readDomains(t.Context(), look, "c", &View{})
		if err != nil {
			t.Error(err)
		}
		out := 0
		for _, d := range doms {
			if d.State != Fenced || d.Failover == nil {
				continue
			}
			out++
			if d.Mod != res.Revision {
				continue
			}
			for _, n := range names {
				if kv, err := look.Get(t.Context(), nodePrefix("c")+n); n[:1] == d.Name && err == nil && kv.Created < res.Revision {
					t.Errorf("%s: domain %s was fenced with node %s registered", node, d.Name, n)
				}
			}
		}
		if out != 1 {
			t.Errorf("%d domains are fenced by arbiters: %+v", out, doms)
		}
		return res, nil
	})
	later(10 * time.Second)
	mark := func(n string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		ill[n] = time.Now()
	}
	for end := time.Now().Add(time.Hour); time.Now().Before(end) && !t.Failed(); {
		switch site := names[2*r.IntN(2):][:2]; r.IntN(10) {
		case 0, 1: // a site, or a node
			for _, n := range site[r.IntN(2):] {
				s.lose(n)
				mark(n)
			}
		case 2, 3, 4:
			for _, n := range site {
				if s.lost(n) {
					mark(n)
				}
				s.find(n)
			}
		case 5:
			s.mu.Lock()
			s.term++
			for _, n := range names {
				ill[n] = time.Now()
			}
			s.mu.Unlock()
		case 6:
			operate(t, s.anyone(r, names).Deactivate, Change{Domain: site[0][:1], Actor: "op", PeerLost: true})
		case 7, 8:
			operate(t, s.anyone(r, names).Activate, Change{Domain: site[0][:1], Actor: "op"})
		case 9:
			if d, _, err := readDomains(t.Context(), look, "c", &View{}); err == nil && len(d) == 2 {
				if i := r.IntN(2); d[i].State == Active {
					vols.attach(fmt.Sprint("v", 1+r.IntN(2)), d[i].Name+"1")
				}
			}
		}
		later(2*scanEvery + time.Duration(r.IntN(23_000))*time.Millisecond) // what ends between two looks is not seen, and does no harm
	}
	return fences
}

func (s *sites) lost(n string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down[n]
}

// operate does what an operator asks, of a node that may be cut off.
func operate(t *testing.T, do func(context.Context, Change) (Domain, error), c Change) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := do(ctx, c); err != nil && ctx.Err() == nil && !errors.Is(err, ErrLastCopy) {
		t.Error(err)
	}
}

// anyone is a manager that reaches the kvdb, if there is one.
func (s *sites) anyone(r *rand.Rand, names []string) *Manager {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range r.Perm(len(names)) {
		if !s.down[names[i]] {
			return s.ms[names[i]]
		}
	}
	return s.ms[names[0]]
}

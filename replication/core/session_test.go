package core

import (
	"math/rand/v2"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// servingWorld is a fifo world of two nodes in which the first node serves the volume.
func servingWorld(t *testing.T) *simWorld {
	t.Helper()
	w := newSimWorld(2, rand.New(rand.NewPCG(1, 1)))
	w.fifo, w.fail = true, t.Fatalf
	w.client.at = w.nodes[0]
	w.nodes[0].attach()
	w.run(50)
	if c := w.nodes[0].coord; c.Stall() != StallNone || c.openSet() != c.all() {
		t.Fatalf("does not serve: %s", c.Stall())
	}
	return w
}

// run lets some milliseconds pass.
func (w *simWorld) run(ms int64) {
	for end := w.now + ms*1e6; w.now < end; {
		w.step()
	}
}

// A replica that serves a session no more says so in its answer to a request. That
// is no failure of the request: another session is opened, and it is sent again.
func TestSessionServedNoMore(t *testing.T) {
	for _, st := range []replication.Status{replication.StatusFenced, replication.StatusShuttingDown} {
		w := servingWorld(t)
		c := w.nodes[0].coord
		w.nodes[1].disk.hung = true
		w.client.write(0, 0)
		w.run(20)
		old := c.m[1].sess
		c.Step(w.now, 1, &replication.Message{Type: replication.MsgNack, Status: st, Session: old, Term: c.term, Seq: c.lastSeq})
		w.nodes[0].drainCoord()
		w.nodes[1].unhang()
		w.run(200)
		if len(w.client.flight) > 0 || c.m[1].sess == old || len(w.cfg.ISR) != 2 || w.seen["resync started"] > 0 {
			t.Errorf("%v: %d requests in flight, in sync %v", st, len(w.client.flight), w.inSync())
		}
	}
}

// The budget of resyncs after a long pause is a full one, whatever rate and pause.
func TestResyncRateLongPause(t *testing.T) {
	for _, rate := range []int64{1, 1 << 20, 100 << 20, 1 << 40, 1 << 62} {
		c := &Coordinator{o: Options{ResyncWindow: 1, ResyncRate: rate}, now: 1}
		c.budget()
		c.now += 1 << 62 // 146 years
		if !c.budget() || c.bucket.tokens < 0 {
			t.Errorf("%d bytes a second: %d tokens, and nothing may start", rate, c.bucket.tokens)
		}
	}
}

// A request that waited behind another one is not late before it was with a replica
// for the whole timeout.
func TestSlowSinceSent(t *testing.T) {
	for _, kind := range []replication.MessageType{replication.MsgWrite, replication.MsgRead} {
		w := servingWorld(t)
		c, disk := w.nodes[0].coord, &w.nodes[0].disk
		disk.hung = true
		for _, k := range []replication.MessageType{replication.MsgWrite, kind} {
			c.Propose(w.now, &IO{Kind: k, Len: sector, Data: make([]byte, sector)})
		}
		w.nodes[0].drainCoord()
		w.run(900)
		for w.nodes[0].unhang(); len(c.waiting) > 0; {
			w.step()
		}
		disk.hung = true
		w.run(200)
		if len(c.flight.ios) == 0 || len(c.waiting) > 0 || c.evictReq != 0 {
			t.Errorf("%v: %d in flight, %d waiting, to be evicted %b for %q", kind, len(c.flight.ios), len(c.waiting), c.evictReq, c.evictWhy)
		}
		if w.run(1000); c.evictReq == 0 && len(w.cfg.ISR) == 2 {
			t.Errorf("%v: nobody is late", kind)
		}
	}
}

// What a session that was given up still brings is no answer in the next one: there the request is sent again, and under way (I15).
func TestAnswerOfOldSession(t *testing.T) {
	w, c := leasingWorld(t)
	n := w.nodes[0]
	w.client.write(0, 0)
	io, old, now := c.flight.ios[0], c.m[1].sess, w.now+1e9
	c.SessionDown(now, 1, old)
	n.drainCoord()
	c.Tick(now + 2*w.opts.RetryInterval)
	n.drainCoord()
	c.SessionUp(now+3*w.opts.RetryInterval, 1, c.m[1].sess, replication.HelloAck{Boot: c.m[1].boot})
	n.drainCoord()
	for _, tc := range []struct {
		sess replication.SessionID
		want bool
	}{{old, false}, {c.m[1].sess, true}} {
		c.Step(now+4*w.opts.RetryInterval, 1, &replication.Message{Type: replication.MsgAck, Session: tc.sess, Seq: io.seq})
		if io.acked.has(1) != tc.want {
			t.Errorf("an answer of session %d, the present one is %d: acknowledged is %v", tc.sess, c.m[1].sess, !tc.want)
		}
	}
}

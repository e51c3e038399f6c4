package transport

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/replication"
	pb "github.com/tandem-storage/tandem/replication/replicationpb"
)

var errCut = errors.New("cut")

// fakePeer answers beats after delay, in a synctest bubble.
type fakePeer struct {
	sync.Mutex
	delay  time.Duration
	silent bool  // connected, but does not answer
	refuse error // of open
	boot   replication.BootID
	opens  int
	cutter context.CancelFunc // resets the open stream
}

func (p *fakePeer) open(ctx context.Context) (beatStream, error) {
	p.Lock()
	defer p.Unlock()
	p.opens++
	if p.refuse != nil {
		return nil, p.refuse
	}
	ctx, p.cutter = context.WithCancel(ctx)
	return &fakeStream{p: p, ctx: ctx, answers: make(chan *pb.BeatResponse, 1000)}, nil
}

// set changes p while it is in use.
func (p *fakePeer) set(f func()) {
	p.Lock()
	defer p.Unlock()
	f()
}

func (p *fakePeer) cut() { p.set(func() { p.cutter() }) }

// count is how many streams were asked for.
func (p *fakePeer) count() (n int) {
	p.set(func() { n = p.opens })
	return n
}

type fakeStream struct {
	p       *fakePeer
	ctx     context.Context
	answers chan *pb.BeatResponse
}

func (s *fakeStream) Send(r *pb.BeatRequest) error {
	if s.ctx.Err() != nil {
		return errCut
	}
	s.p.Lock()
	defer s.p.Unlock()
	if !s.p.silent {
		boot := s.p.boot
		time.AfterFunc(s.p.delay, func() { s.answers <- &pb.BeatResponse{Seq: r.GetSeq(), Boot: boot[:]} })
	}
	return nil
}

func (s *fakeStream) Recv() (*pb.BeatResponse, error) {
	select {
	case a := <-s.answers:
		return a, nil
	case <-s.ctx.Done():
		return nil, errCut
	}
}

// bubble runs f with a monitor that beats with p, and the changes that it tells.
func bubble(t *testing.T, p *fakePeer, f func(t *testing.T, m *monitor, changes chan Liveness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		changes := make(chan Liveness, 100)
		self, err := InsecureLoopback(Identity{Cluster: "c", Domain: "d", Node: "n"})
		if err != nil {
			t.Fatal(err)
		}
		c := &PeersConfig{Security: self, OnLiveness: func(l Liveness) { changes <- l }}
		if err := c.ensureDefaults(); err != nil {
			t.Fatal(err)
		}
		m := newMonitor(c, "peer")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			m.run(ctx, p.open)
		}()
		f(t, m, changes)
		cancel()
		<-ended
	})
}

// next returns the next change and how long it took.
func next(changes chan Liveness) (Liveness, time.Duration) {
	start := time.Now()
	return <-changes, time.Since(start)
}

func TestBeatRTT(t *testing.T) {
	p := &fakePeer{delay: 2 * time.Millisecond, boot: replication.BootID{7}}
	bubble(t, p, func(t *testing.T, m *monitor, changes chan Liveness) {
		if m.liveness().Up || m.liveness().Err == nil || m.rtt().Samples != 0 {
			t.Error("up before anything was answered")
		}
		l, took := next(changes)
		if !l.Up || l.Node != "peer" || l.Boot != p.boot || l.Err != nil || took != p.delay {
			t.Errorf("%+v after %v", l, took)
		}
		<-time.After(30 * time.Second)
		p.set(func() { p.delay = 8 * time.Millisecond })
		<-time.After(20 * time.Second)
		r := m.rtt()
		if r.P50 != 2*time.Millisecond || r.P99 != 8*time.Millisecond || r.Samples < 99 || r.Samples > 101 {
			t.Errorf("after 50 s: %+v", r)
		}
		if age := time.Since(r.LastSeen); age > time.Second {
			t.Errorf("last seen %v ago", age)
		}
		// A minute later the first value is forgotten.
		<-time.After(time.Minute)
		if r := m.rtt(); r.P50 != 8*time.Millisecond || r.Samples < 119 || r.Samples > 122 {
			t.Errorf("after 110 s: %+v", r)
		}
		if len(changes) != 0 || p.count() != 1 {
			t.Errorf("%d changes, %d streams", len(changes), p.count())
		}
	})
}

// TestBeatSlow: an RTT above the interval is measured as it is.
func TestBeatSlow(t *testing.T) {
	bubble(t, &fakePeer{delay: 1200 * time.Millisecond}, func(t *testing.T, m *monitor, changes chan Liveness) {
		<-time.After(10 * time.Second)
		if r := m.rtt(); r.P50 != 1200*time.Millisecond || r.P99 != r.P50 {
			t.Errorf("%+v", r)
		}
		if len(changes) != 1 || !m.liveness().Up {
			t.Errorf("%d changes", len(changes))
		}
	})
}

// TestBeatSilence: a peer that does not answer is down after SuspectAfter, and
// up again with its first answer.
func TestBeatSilence(t *testing.T) {
	p := &fakePeer{}
	bubble(t, p, func(t *testing.T, m *monitor, changes chan Liveness) {
		next(changes)
		<-time.After(10*time.Second + time.Millisecond) // right behind a beat
		p.set(func() { p.silent = true })
		l, took := next(changes)
		if l.Up || !errors.Is(l.Err, ErrDisconnected) || took != 3*time.Second-time.Millisecond {
			t.Errorf("%+v after %v", l, took)
		}
		<-time.After(20 * time.Second)
		if len(changes) != 0 || m.liveness().Up {
			t.Error("changes while nothing changed")
		}
		p.set(func() { p.silent, p.boot = false, replication.BootID{9} })
		if l, took := next(changes); !l.Up || l.Boot != p.boot || took > m.c.SuspectAfter+m.c.BeatInterval {
			t.Errorf("%+v after %v", l, took)
		}
	})
}

// TestBeatReset: after a reset the peer is down at once if it cannot be
// connected again, and goes on as if nothing had been if it can.
func TestBeatReset(t *testing.T) {
	p := &fakePeer{}
	bubble(t, p, func(t *testing.T, m *monitor, changes chan Liveness) {
		next(changes)
		<-time.After(5 * time.Second)
		p.cut()
		<-time.After(5 * time.Second)
		if len(changes) != 0 || !m.liveness().Up || p.count() != 2 {
			t.Errorf("a short reset: %d changes, %d streams", len(changes), p.count())
		}
		p.set(func() { p.refuse = errors.New("refused") })
		p.cut()
		if l, took := next(changes); l.Up || !errors.Is(l.Err, p.refuse) || took != 0 {
			t.Errorf("%+v after %v", l, took)
		}
		opens := p.count()
		<-time.After(10 * time.Second)
		if n := p.count() - opens; n < 19 || n > 21 {
			t.Errorf("%d attempts in 10 s", n)
		}
		p.set(func() { p.refuse = nil })
		if l, took := next(changes); !l.Up || took > m.c.BeatInterval {
			t.Errorf("%+v after %v", l, took)
		}
	})
}

// TestBeatFlapping: a peer that accepts and resets without an answer is not up,
// and is not asked without a pause.
func TestBeatFlapping(t *testing.T) {
	p := &fakePeer{}
	bubble(t, p, func(t *testing.T, m *monitor, changes chan Liveness) {
		next(changes)
		p.set(func() { p.silent = true })
		p.cut()
		synctest.Wait()
		p.cut()
		if l, took := next(changes); l.Up || took != 0 {
			t.Errorf("%+v after %v", l, took)
		}
		opens := p.count()
		for range 20 {
			<-time.After(m.c.BeatInterval)
			synctest.Wait()
			p.cut()
		}
		if n := p.count() - opens; n > 20 {
			t.Errorf("%d streams in 20 beats", n)
		}
	})
}

// TestBeatNewBoot: a reboot that was too quick to be missed is told.
func TestBeatNewBoot(t *testing.T) {
	p := &fakePeer{boot: replication.BootID{1}}
	bubble(t, p, func(t *testing.T, _ *monitor, changes chan Liveness) {
		next(changes)
		p.set(func() { p.boot = replication.BootID{2} })
		if l, _ := next(changes); !l.Up || l.Boot != p.boot {
			t.Errorf("%+v", l)
		}
	})
}

// TestBeatDialHangs: a connection that never comes about.
func TestBeatDialHangs(t *testing.T) {
	p := &fakePeer{}
	bubble(t, p, func(t *testing.T, m *monitor, changes chan Liveness) {
		next(changes)
		// No answer to the next stream: open blocks until it is given up.
		hang := func(ctx context.Context) (beatStream, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m2 := newMonitor(m.c, "other")
		start := time.Now()
		if answered, err := m2.beat(ctx, hang); answered || !errors.Is(err, ErrDisconnected) || time.Since(start) != m.c.SuspectAfter {
			t.Errorf("%v, %v after %v", answered, err, time.Since(start))
		}
	})
}

// liar answers with what was not asked.
type liar struct{ answer *pb.BeatResponse }

func (l liar) Send(*pb.BeatRequest) error      { return nil }
func (l liar) Recv() (*pb.BeatResponse, error) { return l.answer, nil }

func TestBeatNonsense(t *testing.T) {
	good := make([]byte, 16)
	for _, a := range []*pb.BeatResponse{{}, {Seq: 2, Boot: good}, {Seq: 1<<64 - 1, Boot: good}, {Seq: 1, Boot: good[:3]}, {Seq: 1}} {
		self, err := InsecureLoopback(Identity{Cluster: "c", Domain: "d", Node: "n"})
		if err != nil {
			t.Fatal(err)
		}
		c := &PeersConfig{Security: self}
		if err := c.ensureDefaults(); err != nil {
			t.Fatal(err)
		}
		m := newMonitor(c, "peer")
		if _, err := m.beat(t.Context(), func(context.Context) (beatStream, error) { return liar{a}, nil }); !errors.Is(err, ErrProtocol) {
			t.Errorf("%v: %v", a, err)
		}
	}
}

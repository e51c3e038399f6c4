package transport

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/replication"
	pb "github.com/tandem-storage/tandem/replication/replicationpb"
)

// rttWindow is how far back an RTT digest looks.
const rttWindow = time.Minute

// Liveness is what beats tell about another node. It is a hint: a node that is
// down may still be writing, and one that is up may have a data path that is not.
type Liveness struct {
	Node     replication.NodeID
	Up       bool               // beats are being answered; false until the first one is
	Boot     replication.BootID // as of the last answer
	LastSeen time.Time          // of the last answer
	Err      error              // why it is not up
}

// beatStream is the sending end of pb.Beat.
type beatStream interface {
	Send(*pb.BeatRequest) error
	Recv() (*pb.BeatResponse, error)
}

// openFunc opens a beatStream. It fails when the peer cannot be reached now.
type openFunc func(context.Context) (beatStream, error)

func openBeats(cc *grpc.ClientConn) openFunc {
	return func(ctx context.Context) (beatStream, error) { return pb.NewBeatClient(cc).Beat(ctx) }
}

// boottime is CLOCK_BOOTTIME in nanoseconds: it goes on while the machine sleeps.
func boottime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail for a clock that the kernel has
	return ts.Nano()
}

// monitor beats with one node.
type monitor struct {
	c  *PeersConfig
	id replication.NodeID
	mu struct {
		sync.Mutex
		live    Liveness
		samples []sample // of the last rttWindow, oldest first
	}
}

type sample struct {
	at  time.Time
	rtt time.Duration
}

func newMonitor(c *PeersConfig, id replication.NodeID) *monitor {
	m := &monitor{c: c, id: id}
	m.mu.live = Liveness{Node: id, Err: fmt.Errorf("%w: node %q has not answered yet", ErrDisconnected, id)}
	return m
}

func (m *monitor) liveness() Liveness {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.live
}

func (m *monitor) rtt() RTT {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := RTT{LastSeen: m.mu.live.LastSeen}
	m.trimLocked(time.Now())
	if r.Samples = len(m.mu.samples); r.Samples == 0 {
		return r
	}
	d := make([]time.Duration, r.Samples)
	for i, s := range m.mu.samples {
		d[i] = s.rtt
	}
	slices.Sort(d)
	r.P50, r.P99 = d[(len(d)-1)*50/100], d[(len(d)-1)*99/100]
	return r
}

func (m *monitor) trimLocked(now time.Time) {
	i := 0
	for i < len(m.mu.samples) && now.Sub(m.mu.samples[i].at) > rttWindow {
		i++
	}
	m.mu.samples = slices.Delete(m.mu.samples, 0, i)
}

// run beats until ctx ends, on one stream after the other. A peer is down when
// it has not answered for SuspectAfter, or, after its connection broke, as soon
// as a new one does not lead to an answer.
func (m *monitor) run(ctx context.Context, open openFunc) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		answered, err := m.beat(ctx, open)
		if ctx.Err() != nil {
			return
		}
		wait := time.Duration(0)
		if !answered || !m.liveness().Up {
			m.down(err)
			wait = m.c.BeatInterval
		}
		pause.Reset(wait)
	}
}

// beat opens a stream and beats on it until it fails or the peer is suspect. It
// reports whether any beat was answered, and why it ended.
func (m *monitor) beat(ctx context.Context, open openFunc) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	suspect := time.NewTimer(m.patience())
	defer suspect.Stop()

	type answer struct {
		*pb.BeatResponse
		at time.Time
	}
	var (
		opened  = make(chan beatStream, 1)
		answers = make(chan answer)
		failed  = make(chan error, 1)
		ended   = make(chan struct{})
	)
	defer func() { cancel(); <-ended }()
	go func() {
		defer close(ended)
		s, err := open(ctx)
		if err != nil {
			failed <- err
			return
		}
		opened <- s
		for {
			r, err := s.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case answers <- answer{r, time.Now()}:
			case <-ctx.Done():
				return
			}
		}
	}()

	var (
		stream beatStream
		seq    uint64
		sent   [16]time.Time // when the last beats were sent, by seq
	)
	send := func() {
		seq++
		sent[seq%uint64(len(sent))] = time.Now()
		// Why a stream is broken is told by Recv.
		_ = stream.Send(&pb.BeatRequest{Seq: seq, Node: string(m.c.Security.Self().Node), Boot: m.c.Boot[:], Boottime: boottime()})
	}
	tick := time.NewTicker(m.c.BeatInterval)
	defer tick.Stop()
	for {
		select {
		case stream = <-opened:
			send()
		case <-tick.C:
			if stream != nil {
				send()
			}
		case a := <-answers:
			if a.GetSeq() == 0 || a.GetSeq() > seq || len(a.GetBoot()) != len(replication.BootID{}) {
				return answered, fmt.Errorf("%w: answer to beat %d of %d", ErrProtocol, a.GetSeq(), seq)
			}
			answered = true
			rtt := time.Duration(-1)
			if seq-a.GetSeq() < uint64(len(sent)) {
				rtt = a.at.Sub(sent[a.GetSeq()%uint64(len(sent))])
			}
			m.answered(replication.BootID(a.GetBoot()), a.at, rtt)
			suspect.Reset(m.c.SuspectAfter)
		case err := <-failed:
			return answered, fmt.Errorf("%w: beats with node %q: %w", ErrDisconnected, m.id, err)
		case <-suspect.C:
			err := fmt.Errorf("%w: node %q has not answered for %v", ErrDisconnected, m.id, m.c.SuspectAfter)
			m.down(err)
			return answered, err
		case <-ctx.Done():
			return answered, ctx.Err()
		}
	}
}

// patience is how long to wait for the first answer on a new stream.
func (m *monitor) patience() time.Duration {
	if l := m.liveness(); l.Up {
		return max(0, time.Until(l.LastSeen.Add(m.c.SuspectAfter)))
	}
	return m.c.SuspectAfter
}

// answered takes note of an answer; rtt < 0 if it is not known.
func (m *monitor) answered(boot replication.BootID, at time.Time, rtt time.Duration) {
	m.mu.Lock()
	l := &m.mu.live
	was := *l
	l.Up, l.Boot, l.LastSeen, l.Err = true, boot, at, nil
	if rtt >= 0 {
		m.trimLocked(at)
		m.mu.samples = append(m.mu.samples, sample{at, rtt})
	}
	now := *l
	m.mu.Unlock()
	if was.Up && was.Boot == boot {
		return
	}
	m.c.Logger.Info("peer is up", zap.String("peer", string(m.id)), zap.Stringer("boot", boot), zap.Duration("rtt", rtt))
	m.tell(now)
}

// down takes note that the peer does not answer because of err.
func (m *monitor) down(err error) {
	m.mu.Lock()
	was := m.mu.live.Up
	m.mu.live.Up, m.mu.live.Err = false, err
	now := m.mu.live
	m.mu.Unlock()
	if !was {
		return
	}
	m.c.Logger.Warn("peer is down", zap.String("peer", string(m.id)), zap.Time("last-seen", now.LastSeen), zap.Error(err))
	m.tell(now)
}

func (m *monitor) tell(l Liveness) {
	if m.c.OnLiveness != nil {
		m.c.OnLiveness(l)
	}
}

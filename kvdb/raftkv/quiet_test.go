package raftkv

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// countingPipeline counts what goes out.
type countingPipeline struct {
	raft.AppendPipeline
	sent int
	err  error
}

func (p *countingPipeline) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.err != nil {
		return nil, p.err
	}
	p.sent++
	return nil, nil //nolint:nilnil // as the library uses it
}

func TestQuietPipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &countingPipeline{}
		troubles := new(atomic.Uint64)
		p := &quietPipeline{AppendPipeline: out, troubles: troubles}
		last, want := uint64(7), 0
		step := func(name string, commit uint64, sent bool, entries ...raft.LogType) {
			t.Helper()
			req := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: last, LeaderCommitIndex: commit}
			for _, e := range entries {
				last++
				req.Entries = append(req.Entries, &raft.Log{Index: last, Type: e})
			}
			if _, err := p.AppendEntries(req, new(raft.AppendEntriesResponse)); err != nil {
				t.Fatal(err)
			}
			if sent {
				want++
			}
			if out.sent != want {
				t.Fatalf("%s: %d requests went out, want %d", name, out.sent, want)
			}
		}
		step("the first one always goes out", 6, true)
		step("what the follower had before is not committed", 6, true)
		step("nor told", 7, true)
		step("now it is", 7, false)
		step("a barrier goes out", 7, true, raft.LogBarrier)
		step("that it is committed can wait", 8, false)
		step("and a noop", 8, true, raft.LogNoop)
		step("can too", 9, false)
		step("a change goes out", 9, true, raft.LogCommand)
		step("and is followed until it is committed", 9, true)
		step("and told", 10, true)
		step("then there is nothing more", 10, false)
		step("a change of the members", 10, true, raft.LogConfiguration, raft.LogBarrier)
		step("is followed too", 10, true)
		step("until it is committed, whatever became of the barrier after it", 11, true)
		step("which can wait", 12, false)
		troubles.Add(1)
		step("a follower that was away is looked at", 12, true)
		step("once", 12, false)
		<-time.After(quietMost - 1)
		step("not yet", 12, false)
		<-time.After(1)
		step("now and then in any case", 12, true)
		step("once", 12, false)
		out.err = errors.New("broken")
		if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 14}}}, nil); !errors.Is(err, out.err) {
			t.Errorf("a request that could not be sent: %v", err)
		}
		out.err = nil
		if step("what failed counts for nothing", 12, false); p.changes != 11 {
			t.Errorf("the last change is entry %d", p.changes)
		}
	})
}

// TestQuietTransport counts what comes back that is not a plain yes.
func TestQuietTransport(t *testing.T) {
	listen := func(name string, answer func(*raft.AppendEntriesRequest) *raft.AppendEntriesResponse) (*raft.NetworkTransport, raft.ServerAddress) {
		tr, err := raft.NewTCPTransport("127.0.0.1:0", nil, 2, time.Second, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tr.Close() })
		go func() {
			for rpc := range tr.Consumer() {
				rpc.Respond(answer(rpc.Command.(*raft.AppendEntriesRequest)), nil)
			}
		}()
		t.Log(name, tr.LocalAddr())
		return tr, tr.LocalAddr()
	}
	var answer raft.AppendEntriesResponse
	leader, _ := listen("leader", nil)
	follower, address := listen("follower", func(*raft.AppendEntriesRequest) *raft.AppendEntriesResponse { a := answer; return &a })
	q := newQuietTransport(leader)
	ask := func(want uint64, fails bool, a raft.AppendEntriesResponse) {
		t.Helper()
		answer = a
		err := q.AppendEntries("f", address, &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 1}, new(raft.AppendEntriesResponse))
		if (err != nil) != fails || q.troubles("f").Load() != want {
			t.Errorf("answer %+v: error %v, %d troubles, want %d", a, err, q.troubles("f").Load(), want)
		}
	}
	ask(0, false, raft.AppendEntriesResponse{Term: 3, Success: true})
	ask(1, false, raft.AppendEntriesResponse{Term: 3})
	ask(2, false, raft.AppendEntriesResponse{Term: 4, Success: true})
	ask(2, false, raft.AppendEntriesResponse{Term: 3, Success: true})
	if q.troubles("g").Load() != 0 {
		t.Error("the troubles of one follower are those of another")
	}
	if err := follower.Close(); err != nil {
		t.Fatal(err)
	}
	follower.CloseStreams()
	ask(3, true, raft.AppendEntriesResponse{Term: 3, Success: true})
}

// TestBatcherPatience: who is patient waits for others, no longer than he said, and nobody for him.
func TestBatcherPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs []time.Duration
		began := time.Now()
		b := batcher{do: func() error {
			runs = append(runs, time.Since(began))
			<-time.After(10 * time.Millisecond)
			return nil
		}}
		const ms = time.Millisecond
		var wg sync.WaitGroup
		ask := func(at, patience, answered time.Duration) {
			wg.Go(func() {
				<-time.After(at)
				ctx := t.Context()
				if patience > 0 {
					ctx = kvdb.Patient(ctx, patience)
				}
				if err := b.wait(ctx); err != nil {
					t.Error(err)
				}
				if d := time.Since(began); d != answered {
					t.Errorf("asked at %v with a patience of %v it was answered at %v, want %v", at, patience, d, answered)
				}
			})
		}
		ask(0, 500*ms, 110*ms) // with the next one, who is in less of a hurry than the third
		ask(50*ms, 400*ms, 110*ms)
		ask(100*ms, 0, 110*ms)
		ask(105*ms, 300*ms, 410*ms) // while it runs: it does not run again for him at once
		ask(200*ms, 200*ms, 410*ms) // who is due first
		ask(1000*ms, 0, 1010*ms)
		ask(1005*ms, 0, 1020*ms)
		ask(2000*ms, time.Hour, 2000*ms+mostPatient+10*ms)
		wg.Wait()
		if want := []time.Duration{100 * ms, 400 * ms, 1000 * ms, 1010 * ms, 2000*ms + mostPatient}; !slices.Equal(runs, want) {
			t.Errorf("it ran at %v, want %v", runs, want)
		}
	})
}

// TestPatienceFromElsewhere: what another node asks for is bounded.
func TestPatienceFromElsewhere(t *testing.T) {
	for ms, want := range map[int64]time.Duration{0: 0, -1: 0, 20: 20 * time.Millisecond, 1 << 62: mostPatient, -1 << 62: 0} {
		if d := kvdb.Patience(patient(t.Context(), &kvdbpb.Origin{PatienceMs: ms})); d != want {
			t.Errorf("%d ms become %v, want %v", ms, d, want)
		}
	}
	r := newRemote(nil, "", true, "c")
	if o := r.from(kvdb.Patient(t.Context(), 20*time.Millisecond)); o.GetPatienceMs() != 20 || !o.GetForwarded() || o.GetClusterId() != "c" {
		t.Errorf("a patient request comes from %v", o)
	}
	if o := r.from(t.Context()); o.GetPatienceMs() != 0 || r.origin.GetPatienceMs() != 0 {
		t.Errorf("one in a hurry comes from %v", o)
	}
}

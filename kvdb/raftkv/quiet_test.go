package raftkv

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
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

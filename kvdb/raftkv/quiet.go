package raftkv

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// quietTransport leaves out what a leader would send to a follower that has nothing to learn from it.
//
// The library appends nothing to each follower every 50 to 100 ms (Config.CommitTimeout), for it to hear of the commit index, beside the heartbeats,
// which do not tell it. With nothing to do that is most of what a leader does. Here an append without entries goes out only
//
//   - if the follower was sent an entry that changes something and has not been told since that it is committed: barriers and the like, which reads are made of, may
//     wait for that until the next append,
//   - if anything but a plain yes came back from the follower since the last one, to a heartbeat too: it was restarted, cut off, or knows a later term,
//   - and every quietMost in any case.
//
// What has entries always goes out. Neither who leads nor when that is noticed depends on what is left out: the follower's patience and the leader's
// lease are those of the heartbeats, and what is not sent is not answered.
type quietTransport struct {
	*raft.NetworkTransport

	mu    sync.Mutex
	peers map[raft.ServerID]*atomic.Uint64 // how often anything but a plain yes came back
}

// quietMost is how long a follower that answers heartbeats hears of nothing else at most.
const quietMost = time.Second

func newQuietTransport(t *raft.NetworkTransport) *quietTransport {
	return &quietTransport{NetworkTransport: t, peers: make(map[raft.ServerID]*atomic.Uint64)}
}

func (t *quietTransport) troubles(id raft.ServerID) *atomic.Uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.peers[id]
	if n == nil {
		n = new(atomic.Uint64)
		t.peers[id] = n
	}
	return n
}

// AppendEntries implements raft.Transport. Heartbeats come this way.
func (t *quietTransport) AppendEntries(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := t.NetworkTransport.AppendEntries(id, to, req, resp)
	if err != nil || !resp.Success || resp.Term > req.Term {
		t.troubles(id).Add(1)
	}
	return err
}

// AppendEntriesPipeline implements raft.Transport.
func (t *quietTransport) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	return &quietPipeline{AppendPipeline: p, troubles: t.troubles(id)}, nil
}

// quietPipeline is used by one goroutine.
type quietPipeline struct {
	raft.AppendPipeline
	troubles *atomic.Uint64

	sent    time.Time // the last request; the zero time before the first one
	seen    uint64    // troubles, then
	commit  uint64    // what it said is committed
	changes uint64    // the last entry that it has and that changes something
}

// AppendEntries implements raft.AppendPipeline. The future is nil where nothing is sent; the library looks at those of Consumer alone.
func (p *quietPipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	now, troubles := time.Now(), p.troubles.Load()
	if len(req.Entries) == 0 && !p.due(now, troubles) {
		return nil, nil
	}
	f, err := p.AppendPipeline.AppendEntries(req, resp)
	if err != nil {
		return f, err
	}
	if p.sent.IsZero() {
		p.changes = req.PrevLogEntry // what it was sent before is not known
	}
	p.sent, p.seen, p.commit = now, troubles, req.LeaderCommitIndex
	for _, e := range req.Entries {
		if e.Type != raft.LogBarrier && e.Type != raft.LogNoop {
			p.changes = e.Index
		}
	}
	return f, nil
}

// due reports whether a request without entries is to be sent.
func (p *quietPipeline) due(now time.Time, troubles uint64) bool {
	return p.sent.IsZero() || p.commit < p.changes || p.seen != troubles || now.Sub(p.sent) >= quietMost
}

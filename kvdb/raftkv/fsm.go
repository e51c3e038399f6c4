package raftkv

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/kvstate"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// fsm feeds committed log entries to the state machine. raft calls its methods
// one at a time, except that a snapshot is written beside later Applies.
type fsm struct {
	state   *kvstate.Machine
	applied atomic.Uint64 // log index of the last command in state
}

var _ raft.FSM = (*fsm)(nil)

// outcome is what Apply answers.
type outcome struct {
	res kvdb.TxnResult
	err error // the change was refused, by every member alike
}

// Apply panics on an entry that it cannot read: to go on without it would make
// this member differ from the others for good.
func (f *fsm) Apply(l *raft.Log) any {
	c, err := decodeCommand(l.Data)
	if err != nil {
		panic(fmt.Sprintf("log entry %d of term %d: %v", l.Index, l.Term, err))
	}
	var out outcome
	switch change := c.GetChange().(type) {
	case *kvdbpb.Command_Txn:
		out.res, out.err = f.state.Txn(txnFromProto(change.Txn))
	case *kvdbpb.Command_Grant:
		out.err = f.state.Grant(kvdb.LeaseID(change.Grant.GetId()), time.Duration(change.Grant.GetTtlMs())*time.Millisecond)
	case *kvdbpb.Command_End:
		out.err = f.state.EndLease(kvdb.LeaseID(change.End.GetId()))
	default:
		panic(fmt.Sprintf("log entry %d of term %d: a change that this version does not know", l.Index, l.Term))
	}
	f.applied.Store(l.Index)
	return out
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return fsmSnapshot{state: f.state.Snapshot(), applied: f.applied.Load()}, nil
}

// Restore implements raft.FSM. The state is replaced only once the whole snapshot has been read and checked.
func (f *fsm) Restore(r io.ReadCloser) error {
	s, err := readSnapshot(r)
	if err != nil {
		return err
	}
	if err := f.state.Restore(s.revision, s.leases, s.kvs); err != nil {
		return err
	}
	f.applied.Store(s.applied)
	return nil
}

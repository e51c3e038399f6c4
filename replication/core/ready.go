package core

import "github.com/tandem-storage/tandem/replication"

// Ready is what the caller has to do. The slices are valid until the next input.
type Ready struct {
	Messages    []Outgoing   // to send, in order per member; a message to a session that is gone is dropped
	Control     []Control    // unary requests; each is answered by one ControlDone
	Change      *Change      // a compare-and-set; answered by one ChangeDone
	Connect     []Session    // sessions to open; answered by MsgHelloAck through Step, or SessionDown
	Disconnect  []Session    // sessions to close
	Completions []Completion // answers to the consumer
	Released    []*IO        // requests that the core no longer refers to; each after its completion
	Returned    []*IO        // requests that were not carried out and are not answered, in order: after a handover
	Events      []Event      // for listeners; never needed for correctness
}

// Outgoing is a message for member To (an index into Members).
type Outgoing struct {
	To  int
	Msg replication.Message
}

// Session names an incarnation of a stream to member To.
type Session struct {
	To    int
	ID    replication.SessionID
	Term  replication.Term
	Hello replication.Hello
}

// Control is one unary request to member To. Exactly one of the pointers is set.
type Control struct {
	ID      uint64
	To      int
	Seal    *replication.SealRequest
	Prepare *replication.PrepareRequest
	Commit  *replication.CommitRequest
	Dirty   *replication.DirtyRequest
}

// ControlResult answers a Control. Failed means that no answer came (the request
// may have taken effect); otherwise the pointer that matches the request is set.
type ControlResult struct {
	Failed  bool
	Seal    *replication.SealResult
	Prepare *replication.PrepareResult
	Commit  *replication.CommitResult
	Dirty   *replication.DirtyResult
}

// Change asks for a compare-and-set of the configuration from Prev, which was read or made at revision Rev, to Next. Neither is to be changed.
type Change struct {
	Prev *replication.Config
	Rev  uint64
	Next *replication.Config
	// Sealed is what was heard of the in-sync replicas at a takeover, for its record; nil for every other change.
	Sealed []Sealed
}

// Outcome of a Change.
type Outcome uint8

// Outcomes of one attempt. The same Change is asked for again after ChangeUnknown.
const (
	ChangeOK       Outcome = iota // Next is in force
	ChangeConflict                // another change came first, or Next did before; the configuration in force is given
	ChangeNotSent                 // the kvdb is out of reach and certainly did not get it in this attempt
	ChangeRefused                 // this node's cluster domain is not ACTIVE: no attempt took effect, or will
	ChangeUnknown                 // Next may be in force, or come into force later
	// ChangeRolledBack: the kvdb was restored or replaced and the volume not imported since: no attempt took effect, or will.
	ChangeRolledBack
	ChangeGone // the kvdb has no configuration of the volume: no attempt took effect, or will
)

func (o Outcome) String() string {
	return [...]string{"done", "configuration changed by others", "kvdb not reachable", domainClosed, "not known", "kvdb rolled back", "volume gone"}[o]
}

// Completion is the answer to a consumer's request.
type Completion struct {
	IO  *IO
	Err error
}

package core

import (
	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// IO is one request of the consumer. The proposer fills the exported fields and
// leaves it alone until the core has released it; it may be used again then.
type IO struct {
	Kind  replication.MessageType // MsgWrite, MsgZero, MsgTrim, MsgFlush or MsgRead
	Flags replication.MessageFlags
	Off   int64 // bytes, multiple of block.SectorSize
	Len   int64
	Data  []byte        // source of a write, destination of a read
	Buf   *block.Buffer // owner of Data
	Sums  []uint32      // of a write, one for each sector

	User any // the proposer's

	seq       replication.Seq
	slot      int   // position in Coordinator.flight, -1 outside
	born      int64 // when it was proposed, ns
	sent      int64 // when it was dispatched
	targets   mask  // members that it was sent to, or will be when their session opens
	acked     mask
	full      mask            // members that answered no-space
	failed    mask            // members that answered with another error
	damaged   mask            // members that got it damaged once
	spoilt    mask            // members that got it damaged again
	from      int             // read: the member asked; -1 none
	number    uint64          // read: counts them as they are sent
	cover     replication.Seq // flush: writes up to here are covered by it
	delivered bool            // the consumer has its answer
	internal  bool            // the core's own flush: nobody to deliver to
	copy      *copyJob        // set for the lock of a copy
}

// modifies reports whether the request changes data.
func (io *IO) modifies() bool {
	return io.Kind == replication.MsgWrite || io.Kind == replication.MsgZero || io.Kind == replication.MsgTrim
}

// exclusive reports whether nothing overlapping may be in flight with it (I15, I16).
func (io *IO) exclusive() bool { return io.Kind != replication.MsgRead }

// mask is a set of members by index.
type mask uint32

// maxMembers is how many a mask has room for.
const maxMembers = 32

func bit(i int) mask { return 1 << i }

func (m mask) has(i int) bool     { return m>>i&1 != 0 }
func (m mask) covers(o mask) bool { return m&o == o }

// flightTable has the requests and copies in flight with their ranges side by
// side, so that the overlap test is a scan of plain integers. It stays small:
// the engine bounds the requests that it proposes.
type flightTable struct {
	ios   []*IO
	start []int64
	end   []int64
	bySeq map[replication.Seq]*IO
}

func newFlightTable() flightTable { return flightTable{bySeq: make(map[replication.Seq]*IO)} }

func (t *flightTable) add(io *IO) {
	io.slot = len(t.ios)
	t.ios = append(t.ios, io)
	t.start = append(t.start, io.Off)
	t.end = append(t.end, io.Off+io.Len)
	t.bySeq[io.seq] = io
}

func (t *flightTable) remove(io *IO) {
	i, n := io.slot, len(t.ios)-1
	t.ios[i], t.start[i], t.end[i] = t.ios[n], t.start[n], t.end[n]
	t.ios[i].slot = i
	t.ios[n] = nil
	t.ios, t.start, t.end = t.ios[:n], t.start[:n], t.end[:n]
	io.slot = -1
	delete(t.bySeq, io.seq)
}

// blocks reports whether something in flight keeps io from being dispatched.
func (t *flightTable) blocks(io *IO) bool {
	a, b := io.Off, io.Off+io.Len
	for i, s := range t.start {
		if s < b && a < t.end[i] && (io.exclusive() || t.ios[i].exclusive()) {
			return true
		}
	}
	return false
}

// minWrite is the smallest number of a modification in flight, or 0. The copies of heals and comparisons count, those of a resync
// do not: what they write is in no activity log.
func (t *flightTable) minWrite() replication.Seq {
	var least replication.Seq
	for _, io := range t.ios {
		if (io.modifies() || io.copy != nil && (io.copy.heal || io.copy.reconcile)) && (least == 0 || io.seq < least) {
			least = io.seq
		}
	}
	return least
}

// overlap reports whether two requests may not be in flight together.
func overlap(a, b *IO) bool {
	return a.Off < b.Off+b.Len && b.Off < a.Off+a.Len && (a.exclusive() || b.exclusive())
}

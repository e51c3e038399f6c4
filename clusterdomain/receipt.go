package clusterdomain

import (
	"fmt"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// Receipt is what is kept of one takeover of a volume: it was attached anew, though the attachment before had not ended in order, or
// it was forced back to an older replica. Times are by the clocks of the nodes that acted, for people.
type Receipt struct {
	From     Attachment       `json:"from"`   // that was ended; Node is "" if it was forced while detached
	To       Attachment       `json:"to"`     // that followed it, or is to
	Before   uint64           `json:"before"` // epoch of the volume in which From ended
	After    uint64           `json:"after"`  // epoch in which To serves; 0: not yet
	Taken    time.Time        `json:"taken"`  // From could confirm nothing any more that To does not have
	Served   time.Time        `json:"served,omitzero"`
	Attempts int              `json:"attempts"`        // takeovers that were begun
	Fence    *FenceNote       `json:"fence,omitempty"` // of From's domain, as it was at Taken
	Replicas []ReceiptReplica `json:"replicas"`
	Exposed  *ExposedNote     `json:"exposed,omitempty"` // nil: at Taken every replica was in sync
	// Forced: DataEpoch is of the newest configuration that the replica knew which is the only one in sync now. What came after it is lost.
	Forced    bool   `json:"forced,omitempty"`
	DataEpoch uint64 `json:"data_epoch,omitempty"`

	// From the volume's exposure ledger, when the receipt is read: what it was until all replicas were in sync again.
	Returned      time.Time `json:"-"` // zero: not yet
	ReturnedBytes int64     `json:"-"` // were gone through for that: at most so much differed
	// ExposedBytes had been written at most while replicas were missing at Taken; 0: they are not back, it is not known.
	ExposedBytes int64 `json:"-"`
	// Verified is the last verify that began after that; nil: there was none.
	Verified *Verified `json:"-"`
}

// Attachment is one attachment of a volume.
type Attachment struct {
	Node   string `json:"node,omitempty"`
	Domain string `json:"domain,omitempty"`
	ID     string `json:"id,omitempty"`
	Term   uint64 `json:"term,omitempty"`
}

// FenceNote is the record of a domain when a volume was taken from it.
type FenceNote struct {
	State    State  `json:"state"`
	Epoch    uint64 `json:"epoch"`
	Actor    string `json:"actor"`
	Reason   string `json:"reason,omitempty"`
	Failover uint64 `json:"failover,omitempty"` // automatic, 0: it was a person's order, or none
}

// ReceiptReplica is a replica at a takeover.
type ReceiptReplica struct {
	ID     string `json:"id"`
	Node   string `json:"node"`
	Domain string `json:"domain"`
	Before bool   `json:"before,omitempty"` // in sync when From ended
	After  bool   `json:"after,omitempty"`  // and for To
	Reason string `json:"reason,omitempty"` // not in sync, before or after
	// Sealed: it promised to take nothing more of From, and told what it has: all of Term up to Seq that was confirmed. Term is 0 if its
	// process was started later, or nothing was written.
	Sealed bool   `json:"sealed,omitempty"`
	Lossy  bool   `json:"lossy,omitempty"` // it had lost power since its last flush
	Term   uint64 `json:"term,omitempty"`
	Seq    uint64 `json:"seq,omitempty"`
}

// ExposedNote says that a volume was not in sync everywhere.
type ExposedNote struct {
	Since time.Time `json:"since,omitzero"` // zero: since before this was recorded
	Epoch uint64    `json:"epoch"`          // that began it
	// Without are the domains with replicas and none in sync: had they been the ones that were left, there had been nothing to go on with.
	Without []string `json:"without,omitempty"`
}

// Kept is whether everything that was confirmed before is known to be there after, and why, or why not.
func (r *Receipt) Kept() (bool, string) {
	if r.Forced {
		return false, fmt.Sprintf("forced: what was confirmed after epoch %d is lost", r.DataEpoch)
	}
	if r.After == 0 {
		return false, "it is not served yet"
	}
	var whole, lossy []string
	for _, p := range r.Replicas {
		switch {
		case !p.Before || !p.Sealed || !p.After:
		case p.Lossy:
			lossy = append(lossy, p.Node)
		default:
			whole = append(whole, p.Node)
		}
	}
	switch {
	case len(whole) > 0:
		return true, fmt.Sprintf("every confirmed write is on %s, which was in sync until then", strings.Join(whole, " and "))
	case len(lossy) > 0:
		return false, fmt.Sprintf("%s lost power: what was confirmed and not flushed may be missing", strings.Join(lossy, " and "))
	default:
		return false, "what the replicas told was not recorded"
	}
}

// ReceiptPB makes r a message.
func ReceiptPB(r *Receipt) *clusterdomainpb.Receipt {
	kept, why := r.Kept()
	pb := &clusterdomainpb.Receipt{
		From: attachmentPB(r.From), To: attachmentPB(r.To), EpochBefore: r.Before, EpochAfter: r.After, TakenUnixMs: unixMs(r.Taken), ServedUnixMs: unixMs(r.Served),
		Attempts: uint32(r.Attempts), Kept: kept, Why: why, Forced: r.Forced, DataEpoch: r.DataEpoch,
		ReturnedUnixMs: unixMs(r.Returned), ReturnedBytes: uint64(r.ReturnedBytes), ExposedBytes: uint64(r.ExposedBytes), Verified: VerifiedPB(r.Verified),
	}
	if f := r.Fence; f != nil {
		pb.Fence = &clusterdomainpb.Receipt_Fence{State: string(f.State), Epoch: f.Epoch, Actor: f.Actor, Reason: f.Reason, Failover: f.Failover}
	}
	if x := r.Exposed; x != nil {
		pb.Exposed = &clusterdomainpb.Receipt_Exposed{SinceUnixMs: unixMs(x.Since), Epoch: x.Epoch, WithoutDomains: x.Without}
	}
	for _, p := range r.Replicas {
		pb.Replicas = append(pb.Replicas, &clusterdomainpb.Receipt_Replica{
			Id: p.ID, Node: p.Node, Domain: p.Domain, InSyncBefore: p.Before, InSyncAfter: p.After, Reason: p.Reason,
			Sealed: p.Sealed, Lossy: p.Lossy, LastTerm: p.Term, LastSeq: p.Seq,
		})
	}
	return pb
}

func attachmentPB(a Attachment) *clusterdomainpb.Receipt_Attachment {
	return &clusterdomainpb.Receipt_Attachment{Node: a.Node, Domain: a.Domain, Id: a.ID, Term: a.Term}
}

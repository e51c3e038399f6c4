package clusterdomain

import (
	"time"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// Verified is what is on record of the last verify of a volume that came to its end: all replicas in sync were compared, block by block,
// while they were in use. Times are by the clock of Node.
type Verified struct {
	Node       string         `json:"node"`
	Began      time.Time      `json:"began"`
	Ended      time.Time      `json:"ended"`
	From       uint64         `json:"from"`                 // epoch of the volume when it began
	To         uint64         `json:"to"`                   // and when it ended
	Bytes      int64          `json:"bytes"`                // compared
	Healed     int64          `json:"healed,omitempty"`     // blocks of 4 KiB that were damaged on one side and rewritten
	Recomputed int64          `json:"recomputed,omitempty"` // equal everywhere, with checksums that were wrong
	Lost       int64          `json:"lost,omitempty"`       // that no side had right
	Differs    int64          `json:"differs,omitempty"`    // in which sides differed that each vouched for theirs
	Sides      []VerifiedSide `json:"sides"`
}

// VerifiedSide is a replica that was in sync throughout a verify.
type VerifiedSide struct {
	ID     string `json:"id"`
	Node   string `json:"node"`
	Domain string `json:"domain"`
	Digest string `json:"digest,omitempty"` // in hexadecimal; "" if not all of it could be read
}

// Equal reports whether at least two sides were read in full, and each block was the same on all of them when it was compared.
func (v *Verified) Equal() bool {
	for _, s := range v.Sides {
		if s.Digest == "" || s.Digest != v.Sides[0].Digest {
			return false
		}
	}
	return len(v.Sides) > 1
}

// VerifiedPB makes v a message, nil of nil.
func VerifiedPB(v *Verified) *clusterdomainpb.Verified {
	if v == nil {
		return nil
	}
	pb := &clusterdomainpb.Verified{
		Node: v.Node, BeganUnixMs: unixMs(v.Began), EndedUnixMs: unixMs(v.Ended), EpochFrom: v.From, EpochTo: v.To, Bytes: uint64(v.Bytes),
		HealedBlocks: uint64(v.Healed), RecomputedBlocks: uint64(v.Recomputed), LostBlocks: uint64(v.Lost), DiffersBlocks: uint64(v.Differs), Equal: v.Equal(),
	}
	for _, s := range v.Sides {
		pb.Sides = append(pb.Sides, &clusterdomainpb.Verified_Side{Id: s.ID, Node: s.Node, Domain: s.Domain, Digest: s.Digest})
	}
	return pb
}

// sumPB sums up a failover over its volumes.
func sumPB(vs []*clusterdomainpb.FailoverVolume) *clusterdomainpb.FailoverSum {
	sum := &clusterdomainpb.FailoverSum{Volumes: uint32(len(vs))}
	for _, v := range vs {
		if v.GetAttachedUnixMs() != 0 {
			sum.Moved++
		}
		r := v.GetReceipt()
		if r == nil {
			continue
		}
		sum.Receipts++
		if r.GetKept() {
			sum.Kept++
		}
		if r.GetExposed() != nil {
			sum.Exposed++
			sum.ExposedBytes += r.GetExposedBytes()
			if r.GetExposedBytes() == 0 {
				sum.ExposedUnknown++
			}
		}
		if r.GetReturnedUnixMs() != 0 {
			sum.Returned++
			sum.ReturnedBytes += r.GetReturnedBytes()
		}
		if x := r.GetVerified(); x != nil {
			sum.Verified++
			if x.GetEqual() {
				sum.Equal++
			}
		}
	}
	return sum
}

package main

import (
	"fmt"
	"io"
	"strings"

	pb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// receiptFields tells of one takeover of a volume, under a title.
func receiptFields(w io.Writer, title, volume string, r *pb.Receipt) {
	kept := "nothing that was confirmed is missing: "
	if !r.GetKept() {
		kept = "NOT KNOWN TO BE WHOLE: "
	}
	pairs := []string{
		"Receipt", title,
		"From", attachmentText(r.GetFrom(), r.GetEpochBefore()),
		"To", attachmentText(r.GetTo(), r.GetEpochAfter()),
		"Taken", timeText(r.GetTakenUnixMs()) + fenceText(r.GetFence()),
		"Served", servedText(r),
		"Data", kept + r.GetWhy(),
	}
	for _, p := range r.GetReplicas() {
		pairs = append(pairs, "Replica "+p.GetNode(), replicaText(p))
	}
	pairs = append(pairs, "Exposed then", exposedText(r.GetExposed()), "Since then", returnText(r), "Verified", verifiedText(volume, r))
	fields(w, append(pairs, digestPairs(r.GetVerified())...)...)
}

// verifiedText tells of a comparison of all replicas after a takeover, and how to begin one.
func verifiedText(volume string, r *pb.Receipt) string {
	switch {
	case r.GetReturnedUnixMs() == 0:
		return ""
	case r.GetVerified() == nil:
		return "not compared in full since then; to begin with that: tandemctl volume verify start " + volume
	}
	return passText(r.GetVerified())
}

// passText is what a verify found, in a line.
func passText(v *pb.Verified) string {
	text := fmt.Sprintf("%s, %s compared in %s, ", timeText(v.GetEndedUnixMs()), bytesText(v.GetBytes()), between(v.GetBeganUnixMs(), v.GetEndedUnixMs()))
	switch {
	case v.GetEqual():
		text += "equal"
	case len(v.GetSides()) < 2:
		text += "ONE REPLICA ONLY was in sync throughout"
	default:
		text += "NOT EQUAL"
	}
	for _, n := range []struct {
		blocks uint64
		what   string
	}{
		{v.GetHealedBlocks(), "healed"}, {v.GetRecomputedBlocks(), "with a wrong checksum"}, {v.GetLostBlocks(), "LOST"}, {v.GetDiffersBlocks(), "DIFFERENT"},
	} {
		if n.blocks > 0 {
			text += fmt.Sprintf(", %s %s", count(int(n.blocks), "block"), n.what)
		}
	}
	return text
}

// digestPairs are the digests of a verify.
func digestPairs(v *pb.Verified) []string {
	var pairs []string
	for _, s := range v.GetSides() {
		digest := s.GetDigest()
		if digest == "" {
			digest = "none, not all of it could be read"
		}
		pairs = append(pairs, "Digest on "+s.GetNode(), digest)
	}
	return pairs
}

func attachmentText(a *pb.Receipt_Attachment, epoch uint64) string {
	if a.GetNode() == "" {
		return fmt.Sprintf("detached, epoch %d", epoch)
	}
	text := fmt.Sprintf("node %s (domain %s), attachment %s, term %d", a.GetNode(), a.GetDomain(), a.GetId(), a.GetTerm())
	if epoch == 0 {
		return text + ", not served yet"
	}
	return text + fmt.Sprintf(", epoch %d", epoch)
}

func fenceText(f *pb.Receipt_Fence) string {
	if f == nil {
		return ""
	}
	text := fmt.Sprintf(", its domain was %s at epoch %d by %s", f.GetState(), f.GetEpoch(), f.GetActor())
	if f.GetReason() != "" {
		text += ": " + oneLine(f.GetReason())
	}
	return text
}

func servedText(r *pb.Receipt) string {
	if r.GetServedUnixMs() == 0 {
		return "not yet, " + count(int(r.GetAttempts()), "attempt")
	}
	return fmt.Sprintf("%s, +%s", timeText(r.GetServedUnixMs()), between(r.GetTakenUnixMs(), r.GetServedUnixMs()))
}

func replicaText(p *pb.Receipt_Replica) string {
	in := func(yes bool) string {
		if yes {
			return "in sync"
		}
		return "not in sync"
	}
	text := "was " + in(p.GetInSyncBefore()) + ", is " + in(p.GetInSyncAfter())
	if p.GetReason() != "" {
		text += " (" + oneLine(p.GetReason()) + ")"
	}
	switch {
	case !p.GetSealed():
	case p.GetLossy():
		text += ", had lost power"
	case p.GetLastTerm() == 0:
		text += ", does not know the last write: none was made, or its process was started later"
	default:
		text += fmt.Sprintf(", has every confirmed write, none was above %d of term %d", p.GetLastSeq(), p.GetLastTerm())
	}
	return text
}

func exposedText(x *pb.Receipt_Exposed) string {
	if x == nil {
		return "no, every replica was in sync"
	}
	text := "since " + timeText(x.GetSinceUnixMs())
	if x.GetSinceUnixMs() == 0 {
		text = "since before this was recorded"
	}
	if d := x.GetWithoutDomains(); len(d) > 0 {
		text += ", nothing in sync in " + strings.Join(d, ", ")
	}
	return text
}

func returnText(r *pb.Receipt) string {
	switch {
	case r.GetServedUnixMs() == 0:
		return ""
	case r.GetReturnedUnixMs() == 0:
		return "not in sync everywhere yet"
	case r.GetReturnedBytes() == 0:
		return "in sync everywhere from " + timeText(r.GetReturnedUnixMs())
	}
	return fmt.Sprintf("in sync everywhere from %s, %s were compared or copied for that", timeText(r.GetReturnedUnixMs()), bytesText(r.GetReturnedBytes()))
}

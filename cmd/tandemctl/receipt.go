package main

import (
	"fmt"
	"io"
	"strings"

	pb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// receiptFields tells of one takeover of a volume.
func receiptFields(w io.Writer, volume string, r *pb.Receipt) {
	kept := "nothing that was confirmed is missing: "
	if !r.GetKept() {
		kept = "NOT KNOWN TO BE WHOLE: "
	}
	pairs := []string{
		"Receipt", volume,
		"From", attachmentText(r.GetFrom(), r.GetEpochBefore()),
		"To", attachmentText(r.GetTo(), r.GetEpochAfter()),
		"Taken", timeText(r.GetTakenUnixMs()) + fenceText(r.GetFence()),
		"Served", servedText(r),
		"Data", kept + r.GetWhy(),
	}
	for _, p := range r.GetReplicas() {
		pairs = append(pairs, "Replica "+p.GetNode(), replicaText(p))
	}
	fields(w, append(pairs, "Exposed then", exposedText(r.GetExposed()), "Since then", returnText(r))...)
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

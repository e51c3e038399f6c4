package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// missing is what the replicas of a volume lack that are not in sync.
type missing struct {
	replicas int
	bytes    uint64        // 0: not known; only the node knows where the volume is attached
	eta      time.Duration // of the longest, 0: not known
	waits    bool          // for a turn to be resynced
}

func missingOf(v *pb.Volume) (m missing) {
	if v.GetPhase() == pb.Phase_PHASE_CREATING || v.GetPhase() == pb.Phase_PHASE_DELETING {
		return m
	}
	for _, r := range v.GetReplicas() {
		if r.GetInSync() {
			continue
		}
		m.replicas++
		m.bytes += r.GetDirtyBytes()
		m.eta = max(m.eta, time.Duration(r.GetEtaSeconds())*time.Second)
		m.waits = m.waits || r.GetResyncWaits()
	}
	return m
}

// text is what is left, and how long it takes.
func (m missing) text(v *pb.Volume) string {
	switch at := v.GetAttachment(); {
	case m.replicas == 0:
		return "-"
	case at == nil:
		return "attach it to resync"
	case m.bytes == 0:
		return "ask " + at.GetNode()
	case m.eta > 0:
		return fmt.Sprintf("%s, %s", bytesText(m.bytes), m.eta)
	case m.waits:
		return bytesText(m.bytes) + ", waits"
	default:
		return bytesText(m.bytes)
	}
}

// redundancyLine sums up what is left in all volumes.
func redundancyLine(vs []*pb.Volume) string {
	var out, detached, elsewhere, waiting int
	var bytes uint64
	var eta time.Duration
	for _, v := range vs {
		m := missingOf(v)
		if m.replicas == 0 {
			continue
		}
		out++
		switch {
		case v.GetAttachment() == nil:
			detached++
		case m.bytes == 0:
			elsewhere++
		}
		if m.waits {
			waiting++
		}
		bytes, eta = bytes+m.bytes, max(eta, m.eta)
	}
	s := fmt.Sprintf("%s, %d not redundant", count(len(vs), "volume"), out)
	if bytes > 0 {
		s += ", " + bytesText(bytes) + " left"
	}
	if eta > 0 {
		s += fmt.Sprintf(", %s at the longest", eta)
	}
	if waiting > 0 {
		s += fmt.Sprintf(", %d waiting for their turn", waiting)
	}
	if elsewhere > 0 {
		s += fmt.Sprintf(", %d of which the node knows more where they are attached", elsewhere)
	}
	if detached > 0 {
		s += fmt.Sprintf(", %d detached: a resync needs them attached", detached)
	}
	return s
}

// redundancy writes that line as the node asked sees it.
func (a *app) redundancy(cmd *cobra.Command, w io.Writer) {
	client, err := a.volumes()
	if err == nil {
		ctx, cancel := a.withTimeout(cmd.Context())
		defer cancel()
		var l *pb.ListVolumesResponse
		if l, err = client.ListVolumes(ctx, &pb.ListVolumesRequest{}); err == nil {
			fmt.Fprintln(w, "\nRedundancy: "+redundancyLine(l.GetVolumes()))
			return
		}
	}
	fmt.Fprintln(w, "\nRedundancy: not known: "+status.Convert(err).Message())
}

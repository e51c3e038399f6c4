package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

func (a *app) volumeExposureCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "exposure VOLUME",
		Short: "Show when a volume was not in sync everywhere",
		Long: `Show when and for how long a volume had fewer replicas in sync than it has, why, and how much was at stake. Each line is a time in
which the same replicas were missing. RESYNCED is what had to be gone through before they were in sync again: at most so much had been
written while they were missing. The newest 64 are kept; of older ones the sum is.

A receipt follows for each of the last 16 times in which the volume was taken from an attachment that had not ended in order: by an arbiter, after
a deactivation with --peer-lost, or because its node was lost; and in which a replica was forced. See tandemctl failover report.`,
		Args: oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.GetExposure(ctx, &pb.GetExposureRequest{Volume: args[0]})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { exposureTable(w, resp) })
		},
	}
}

func exposureTable(w io.Writer, r *pb.GetExposureResponse) {
	x := r.GetExposure()
	fields(w, "Volume", r.GetVolumeId(), "Name", r.GetName(), "Exposed", exposureText(x))
	if x.GetOpen() != nil || len(x.GetPast()) > 0 {
		fmt.Fprintln(w)
		intervalsTable(w, x)
	}
	for _, t := range r.GetReceipts() {
		fmt.Fprintln(w)
		receiptFields(w, "takeover", r.GetName(), t)
	}
}

func intervalsTable(w io.Writer, x *pb.Exposure) {
	rows := [][]string{{"FROM", "FOR", "MISSING", "IN SYNC", "RESYNCED", "BEGAN BY", "ENDED BY"}}
	if n := x.GetEarlierCount(); n > 0 {
		rows = append(rows, []string{"earlier", millisText(x.GetEarlierMs()), fmt.Sprintf("%d times", n), "", someBytes(x.GetEarlierResyncedBytes()), "", ""})
	}
	for _, i := range x.GetPast() {
		rows = append(rows, intervalRow(i))
	}
	if x.GetOpen() != nil {
		rows = append(rows, intervalRow(x.GetOpen()))
	}
	table(w, rows...)
}

func intervalRow(i *pb.ExposedInterval) []string {
	end := "goes on"
	if i.GetToEpoch() > 0 {
		end = fmt.Sprintf("%s (epoch %d)", i.GetEnd(), i.GetToEpoch())
	}
	return []string{timeText(i.GetFromUnixMs()), millisText(i.GetLastedMs()), missingText(i), fmt.Sprint(i.GetInSync()), someBytes(i.GetResyncedBytes()),
		fmt.Sprintf("%s (epoch %d)", i.GetCause(), i.GetFromEpoch()), end}
}

// missingText names the replicas that are out of sync, and the domains that have no other.
func missingText(i *pb.ExposedInterval) string {
	var parts []string
	for _, m := range i.GetMissing() {
		s := m.GetNode()
		if m.GetReason() != "" {
			s += " (" + oneLine(m.GetReason()) + ")"
		}
		parts = append(parts, s)
	}
	text := strings.Join(parts, ", ")
	if d := i.GetWithoutDomains(); len(d) > 0 {
		text += "; nothing in sync in " + strings.Join(d, ", ")
	}
	return text
}

// exposureText sums the ledger up.
func exposureText(x *pb.Exposure) string {
	text := "not now"
	if i := x.GetOpen(); i != nil {
		text = "since " + timeText(i.GetFromUnixMs()) + ", missing " + missingText(i)
		if i.GetFromUnixMs() == 0 {
			text = "since before this was recorded, missing " + missingText(i)
		}
	}
	if n := x.GetTotalCount(); n > 0 {
		text += fmt.Sprintf("; %d times in all, for %s", n, millisText(x.GetTotalMs()))
	}
	return text
}

func millisText(ms int64) string {
	if ms == 0 {
		return "-"
	}
	d := time.Duration(ms) * time.Millisecond
	if d > time.Minute {
		d = d.Round(time.Second)
	}
	return d.String()
}

func someBytes(n uint64) string {
	if n == 0 {
		return "-"
	}
	return bytesText(n)
}

package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

func (a *app) failoverListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the automatic failovers that are on record",
		Long:  `List the automatic failovers that are on record, the last one first. The last 20 are kept.`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.domains()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			l, err := client.ListFailovers(ctx, &pb.ListFailoversRequest{})
			if err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) { failoversTable(w, l.GetFailovers()) })
		},
	}
}

func failoversTable(w io.Writer, fs []*pb.FailoverReport) {
	rows := [][]string{{"ID", "FENCED AT", "FROM DOMAIN", "TO DOMAIN", "LAST HEARD TO FENCED", "BY"}}
	for _, f := range fs {
		rows = append(rows, []string{fmt.Sprint(f.GetId()), timeText(f.GetFencedUnixMs()), f.GetDomain(), f.GetTo(),
			between(f.GetHeardUnixMs(), f.GetFencedUnixMs()), f.GetActor()})
	}
	table(w, rows...)
}

func (a *app) failoverReportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "report [ID]",
		Short: "Tell of one automatic failover what was moved, when, and what was not and why",
		Long: `Tell of one automatic failover, the last one if no ID is given: the evidence on which a domain was fenced, and of each volume that
was attached there where it goes on, its epochs before and after and how long that took from when the domain was last heard of; or
why it does not go on by itself. A receipt of each that was taken over follows: its attachments before and after, what each replica had,
whether anything that was confirmed can be missing and why not, whether it was exposed then, what the return of the other side took, and
whether both sides were compared in full since, with a digest of each. Before the receipts all volumes are summed up.
Times are by the clocks of the nodes that acted. Takeovers that people began are told by tandemctl volume exposure.`,
		Example: `  tandemctl failover report
  tandemctl failover report 3 -o json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError("%s takes one ID at most", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var id uint64
			if len(args) > 0 {
				var err error
				if id, err = strconv.ParseUint(args[0], 10, 64); err != nil || id == 0 {
					return usageError("%q is not the id of a failover: see tandemctl failover list", args[0])
				}
			}
			client, err := a.domains()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			r, err := client.GetFailover(ctx, &pb.GetFailoverRequest{Id: id})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { failoverTable(w, r.GetFailover()) })
		},
	}
}

func failoverTable(w io.Writer, f *pb.FailoverReport) {
	to := f.GetTo()
	if f.GetPromoted() {
		to += " (was STANDBY)"
	}
	fmt.Fprintf(w, "Failover %d: domain %s was fenced, domain %s took over\n", f.GetId(), f.GetDomain(), to)
	fmt.Fprintf(w, "By: %s\nWhy: %s\nNodes gone: %s\n", f.GetActor(), f.GetWhy(), strings.Join(f.GetNodes(), ", "))
	table(w,
		[]string{"Last heard", timeText(f.GetHeardUnixMs()), ""},
		[]string{"Registrations gone", timeText(f.GetGoneUnixMs()), "+" + between(f.GetHeardUnixMs(), f.GetGoneUnixMs())},
		[]string{"Fenced", timeText(f.GetFencedUnixMs()), "+" + between(f.GetHeardUnixMs(), f.GetFencedUnixMs())})
	fmt.Fprintln(w)
	rows := [][]string{{"VOLUME", "FROM", "TO", "EPOCH BEFORE", "EPOCH AFTER", "ATTACHED", "RESULT"}}
	for _, v := range f.GetVolumes() {
		after, attached, result := "", "", "moved"
		if v.GetAttachedUnixMs() != 0 {
			after, attached = fmt.Sprint(v.GetEpochAfter()), "+"+between(f.GetHeardUnixMs(), v.GetAttachedUnixMs())
		} else {
			result = "not moved"
			if v.GetAttempts() > 0 {
				result += fmt.Sprintf(", %s", count(int(v.GetAttempts()), "attempt"))
			}
			if v.GetCause() != "" {
				result += " (" + v.GetCause() + ")"
			}
			if v.GetText() != "" {
				result += ": " + v.GetText()
			}
		}
		rows = append(rows, []string{v.GetName(), v.GetFromNode(), v.GetToNode(), fmt.Sprint(v.GetEpochBefore()), after, attached, result})
	}
	table(w, rows...)
	if n := f.GetMoreVolumes(); n > 0 {
		fmt.Fprintf(w, "%s more are not listed\n", count(int(n), "volume"))
	}
	if s := f.GetSum(); s != nil {
		fmt.Fprintln(w)
		sumFields(w, s)
	}
	for _, v := range f.GetVolumes() {
		if v.GetReceipt() != nil {
			fmt.Fprintln(w)
			receiptFields(w, v.GetName(), v.GetName(), v.GetReceipt())
		}
	}
}

// sumFields sums up a failover.
func sumFields(w io.Writer, s *pb.FailoverSum) {
	of := func(n, all uint32, more string) string { return fmt.Sprintf("%d of %d%s", n, all, more) }
	exposed := of(s.GetExposed(), s.GetReceipts(), "")
	if s.GetExposed() > 0 {
		exposed += fmt.Sprintf(", at most %s until then", bytesText(s.GetExposedBytes()))
		if n := s.GetExposedUnknown(); n > 0 {
			exposed += fmt.Sprintf(" and what is not known of %d", n)
		}
	}
	fields(w,
		"Moved", of(s.GetMoved(), s.GetVolumes(), " volumes"),
		"Nothing confirmed is missing", of(s.GetKept(), s.GetReceipts(), " with a receipt"),
		"Exposed then", exposed,
		"In sync everywhere since", of(s.GetReturned(), s.GetReceipts(), ", "+bytesText(s.GetReturnedBytes())+" were compared or copied for that"),
		"Compared in full since", of(s.GetVerified(), s.GetReceipts(), fmt.Sprintf(", %d equal", s.GetEqual())))
}

// between is how long it is from one time to another, in milliseconds since 1970.
func between(from, to int64) string {
	if from == 0 || to == 0 {
		return "?"
	}
	return (time.Duration(to-from) * time.Millisecond).Round(100 * time.Millisecond).String()
}

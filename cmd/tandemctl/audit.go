package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/audit/auditpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
)

func (a *app) auditListCommand() *cobra.Command {
	var since string
	var limit uint32
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show the audit trail",
		Long: `Show the audit trail, the oldest entry first: what operators and arbiters did to domains, volumes and the key-value
store, when, why, and what came of it. The newest 2048 entries are kept.`,
		Example: `  tandemctl audit list --since 24h
  tandemctl audit list --since 2026-11-21T22:00:00Z -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := a.sinceMillis(since)
			if err != nil {
				return err
			}
			client, err := a.audit()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.ListAudit(ctx, &pb.ListAuditRequest{SinceUnixMs: from, Limit: limit})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { auditTable(w, resp) })
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "only what is not older: a `time`, as in 24h (so long ago) or 2026-11-21T22:00:00Z")
	cmd.Flags().Uint32Var(&limit, "limit", 0, "only so many, the newest; 0: all")
	return cmd
}

// sinceMillis reads --since: a duration back from now, or a time.
func (a *app) sinceMillis(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return a.now().Add(-d).UnixMilli(), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return 0, usageError("--since %q: use how long ago, as in 24h, or a time, as in 2026-11-21T22:00:00Z", s)
	}
	return t.UnixMilli(), nil
}

func auditTable(w io.Writer, r *pb.ListAuditResponse) {
	rows := [][]string{{"SEQ", "TIME", "ACTOR", "NODE", "VERB", "OBJECT", "EPOCH", "OUTCOME", "REASON"}}
	for _, e := range r.GetEntries() {
		outcome := e.GetOutcome()
		if lost := e.GetDataLossVolumes(); len(lost) > 0 {
			outcome += "; DATA GIVEN UP OF " + strings.Join(lost, ",")
		}
		rows = append(rows, []string{fmt.Sprint(e.GetSeq()), timeText(e.GetUnixMs()), oneLine(e.GetActor()), e.GetNode(), e.GetVerb(), e.GetObject(),
			epochText(e.GetEpoch()), oneLine(outcome), oneLine(e.GetReason())})
	}
	table(w, rows...)
	if n := r.GetOmitted(); n > 0 {
		fmt.Fprintf(w, "%d older ones are left out\n", n)
	}
	if n := r.GetUnreadable(); n > 0 {
		fmt.Fprintf(w, "%d entries cannot be read: see \"tandemctl audit verify\"\n", n)
	}
}

func (a *app) auditVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Check that nothing in the audit trail was changed",
		Long: `Check that nothing in the audit trail was changed: each entry has the hash of the one before. An entry that was changed, taken
out or moved is named, and the exit code is 10. Damage that was cut off with old entries since, or behind which the trail goes on, is
counted and stays an error.

Whoever may write to the key-value store can make the whole trail anew. To notice that, keep the hash that is printed elsewhere.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.audit()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.VerifyAudit(ctx, &pb.VerifyAuditRequest{})
			if err != nil {
				return err
			}
			if err := a.print(resp, func(w io.Writer) { auditVerdict(w, resp) }); err != nil || resp.GetIntact() {
				return err
			}
			return &cliError{exit: rpcstatus.ExitDataLoss, msg: "the audit trail has been changed"}
		},
	}
}

func auditVerdict(w io.Writer, r *pb.VerifyAuditResponse) {
	what := "no entries"
	if r.GetLastSeq() >= r.GetFirstSeq() {
		what = fmt.Sprintf("entries %d to %d, the last has hash %s", r.GetFirstSeq(), r.GetLastSeq(), r.GetLastHash())
	}
	for _, f := range r.GetFaults() {
		name := "The head"
		if f.GetSeq() > 0 {
			name = fmt.Sprintf("Entry %d", f.GetSeq())
		}
		fmt.Fprintf(w, "%s %s\n", name, oneLine(f.GetText()))
	}
	if n := r.GetBroken(); n > 0 {
		fmt.Fprintf(w, "The chain was found broken %d times before; what it was may have been cut off by now\n", n)
	}
	if r.GetIntact() {
		fmt.Fprintf(w, "The audit trail is intact: %s\n", what)
	} else {
		fmt.Fprintf(w, "The audit trail is NOT intact: %s\n", what)
	}
}

package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Measure what the cluster stands on, and say what the loss of a site would do now",
		Long: `Have every node measure, and judge what they found: round trips, jitter and loss between all nodes, clocks, the MTU of paths, how fast
each pool's disk syncs, how fast the key-value store answers, and whether each node keeps its registration there. Limits are the 10 ms that
synchronous replication is made for, and the timers that the nodes are configured with. It takes some seconds, and costs each pool eight
small syncs in a scratch file.

Then, for each domain, what its loss at this moment would do to each volume. The exit code is 4 if anything is BAD.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := pb.NewDoctorClient(c).Examine(ctx, &pb.ExamineRequest{})
			if err != nil {
				return err
			}
			if err := a.print(resp, func(w io.Writer) { doctorTable(w, resp) }); err != nil || resp.GetVerdict() != pb.Verdict_VERDICT_BAD {
				return err
			}
			return stateError("", "something is BAD: see above what to do")
		},
	}
}

func doctorTable(w io.Writer, r *pb.ExamineResponse) {
	rows := [][]string{{"CHECK", "OF", "VALUE", "LIMIT", "VERDICT", "WHAT TO DO"}}
	for _, c := range r.GetChecks() {
		rows = append(rows, []string{c.GetName(), c.GetSubject(), oneLine(c.GetValue()), c.GetLimit(), enumText(c.GetVerdict(), "VERDICT_"), c.GetAdvice()})
	}
	table(w, rows...)
	for _, d := range r.GetLosses() {
		fmt.Fprintf(w, "\nIf domain %s were lost now:\n", d.GetDomain())
		for _, v := range d.GetVolumes() {
			name := v.GetName()
			if name == "" {
				name = v.GetVolumeId()
			}
			fmt.Fprintf(w, "  volume %s: %s\n", name, v.GetText())
		}
		if len(d.GetVolumes()) == 0 {
			fmt.Fprintln(w, "  there are no volumes")
		}
	}
}

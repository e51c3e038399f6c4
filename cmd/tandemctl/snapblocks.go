package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

func (a *app) snapshotBlocksCommand() *cobra.Command {
	req := pb.ListBlocksRequest{Most: 4096}
	cmd := &cobra.Command{
		Use:   "blocks SNAPSHOT [--base SNAPSHOT]",
		Short: "List what a snapshot has, or in what it differs from another one",
		Long: `List the ranges of a snapshot that have anything, the rest reads as zeroes; or with --base those in which it may differ from another snapshot of its volume: a copy of that one
becomes one of this when they are copied. Offsets and lengths are bytes. It reads no data.`,
		Example: `  tandemctl volume snapshot blocks monday
  tandemctl volume snapshot blocks tuesday --base monday -o json`,
		Args: oneName("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			req.Snapshot = args[0]
			stream, err := pb.NewSnapshotBlocksClient(c).ListBlocks(cmd.Context(), &req)
			if err != nil {
				return err
			}
			var all pb.ListBlocksResponse
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return err
				}
				all.SizeBytes, all.Ranges = m.GetSizeBytes(), append(all.Ranges, m.GetRanges()...)
			}
			return a.print(&all, func(w io.Writer) {
				rows, sum := [][]string{{"OFFSET", "LENGTH"}}, uint64(0)
				for _, r := range all.GetRanges() {
					rows = append(rows, []string{fmt.Sprint(r.GetOffset()), fmt.Sprint(r.GetLength())})
					sum += r.GetLength()
				}
				table(w, rows...)
				fmt.Fprintf(w, "%s of %s\n", bytesText(sum), bytesText(all.GetSizeBytes()))
			})
		},
	}
	cmd.Flags().StringVar(&req.Base, "base", "", "list what differs from this `snapshot`")
	cmd.Flags().Int64Var(&req.Offset, "offset", 0, "begin at this `byte`, a multiple of 4096")
	return cmd
}

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tandem-storage/tandem/cmd/internal/config"
	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

func (a *app) volumeResizeCommand() *cobra.Command {
	var size string
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "resize VOLUME --size SIZE",
		Short: "Make a volume larger, while it is in use",
		Long: `Make a volume larger. It never shrinks. Of a volume that is attached the device has the new size when the command returns, and whoever uses
it goes on meanwhile; grow the file system then (xfs_growfs, resize2fs). A client over NBD sees the new size when it connects again. A volume that
is detached grows when it is attached next.

If the pool of a replica in sync has no room, nothing is changed.`,
		Example: `  tandemctl volume resize data --size 4GiB`,
		Args:    oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			bytes, err := config.ParseSize(size)
			if err != nil {
				return usageError("--size: %s", strings.TrimPrefix(err.Error(), "config: "))
			}
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.ResizeVolume(ctx, &pb.ResizeVolumeRequest{Volume: args[0], SizeBytes: int64(bytes), Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				v, when := resp.GetVolume(), ""
				if v.GetAttachment() == nil {
					when = " from its next attach on"
				}
				fmt.Fprintf(w, "Volume %s has %s%s\n", v.GetName(), bytesText(v.GetSizeBytes()), when)
			})
		},
	}
	cmd.Flags().StringVarP(&size, "size", "s", "", "new `size` with a binary unit, as in 512Mi or 2GiB; a multiple of 4Ki")
	order.add(cmd)
	_ = cmd.MarkFlagRequired("size") // the flag is there: see above
	return cmd
}

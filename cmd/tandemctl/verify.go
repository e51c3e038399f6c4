package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tandem-storage/tandem/cmd/internal/config"
	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

func (a *app) verifyStartCommand() *cobra.Command {
	var rate string
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "start VOLUME",
		Short: "Begin to verify an attached volume",
		Long: `Begin to verify a volume, on the node where it is attached, and return. The whole of each replica that is in sync is read, checked
against its checksums, and compared with the others, while the volume is in use. A block that is damaged on one replica
is rewritten from another one. Of a block that no replica has right, or in which replicas differ that all vouch for what they
have, reads fail until it is written: "verify status" and "volume inspect" name it.

A verify gives way to a resync, and goes on after it. One that has come to its end tells of each replica that was in sync throughout a digest of what it read;
equal ones mean that every block was the same on them when it was compared. It is put on record, "failover report" shows it. A verify ends when the volume is detached. One that runs
goes on with the new rate. Volumes are also verified by themselves, see replication.verifyInterval of the configuration.`,
		Example: `  tandemctl volume verify start data
  tandemctl volume verify start data --rate 200Mi`,
		Args: oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pb.StartVerifyRequest{Volume: args[0], Reason: order.reason, Actor: a.actor()}
			if cmd.Flags().Changed("rate") {
				bytes, err := config.ParseSize(rate)
				if err != nil {
					return usageError("--rate: %s", strings.TrimPrefix(err.Error(), "config: "))
				}
				n := int64(bytes)
				req.RateBytesPerSecond = &n
			}
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.StartVerify(ctx, req)
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { fmt.Fprintf(w, "Volume %s is being verified\n", args[0]) })
		},
	}
	cmd.Flags().StringVar(&rate, "rate", "", "read at most this `size` of each replica in a second, as in 200Mi; 0: no limit (default replication.verifyRate of the node)")
	order.add(cmd)
	return cmd
}

func (a *app) verifyStopCommand() *cobra.Command {
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "stop VOLUME",
		Short: "End the verify of a volume before its end",
		Args:  oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.StopVerify(ctx, &pb.StopVerifyRequest{Volume: args[0], Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { fmt.Fprintf(w, "Volume %s is not being verified\n", args[0]) })
		},
	}
	order.add(cmd)
	return cmd
}

func (a *app) verifyStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status VOLUME",
		Short: "Show how far the verify of a volume is, and what was found",
		Args:  oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.GetVerify(ctx, &pb.GetVerifyRequest{Volume: args[0]})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { verifyTable(w, resp.GetVolume()) })
		},
	}
}

func verifyTable(w io.Writer, v *pb.Volume) {
	y := v.GetVerify()
	pairs := []string{"Volume", v.GetId(), "Name", v.GetName(), "Verify", verifyText(y)}
	if y.GetRunning() {
		pairs = append(pairs, "Started", timeText(y.GetStartedUnixMs()),
			"Healed", fmt.Sprintf("%d blocks", y.GetHealedBlocks()),
			"Checksums made anew", fmt.Sprintf("%d blocks", y.GetRecomputedBlocks()))
	}
	last := "none since the volume was attached"
	if y.GetLast() != nil {
		last = passText(y.GetLast())
	}
	pairs = append(append(pairs, "Last complete", last), digestPairs(y.GetLast())...)
	if y.GetNextUnixMs() != 0 {
		pairs = append(pairs, "Next", timeText(y.GetNextUnixMs()))
	}
	fields(w, append(pairs, damagePairs(v.GetDamage())...)...)
	fmt.Fprintln(w, "\nReplicas in sync:")
	rows := [][]string{{"NODE", "DOMAIN", "POOL", "HEALED BLOCKS", "DISK SUSPECT"}}
	for _, r := range v.GetReplicas() {
		if r.GetInSync() {
			rows = append(rows, []string{r.GetNode(), r.GetDomain(), r.GetPool(), fmt.Sprint(r.GetHealedBlocks()), yesNo(r.GetSuspect())})
		}
	}
	table(w, rows...)
}

func verifyTime(ms int64, none string) string {
	if ms == 0 {
		return none
	}
	return timeText(ms)
}

// verifyText is how far a verify is, in a line.
func verifyText(y *pb.Verify) string {
	if !y.GetRunning() {
		return "not running"
	}
	done, total := min(y.GetDoneBytes(), y.GetTotalBytes()), max(y.GetTotalBytes(), 1)
	text := fmt.Sprintf("%d %%, %s of %s", uint64(float64(done)/float64(total)*100), bytesText(done), bytesText(y.GetTotalBytes()))
	if y.GetBytesPerSecond() > 0 {
		text += ", " + rateText(y.GetBytesPerSecond())
	}
	if y.GetEtaSeconds() > 0 {
		text += fmt.Sprintf(", %s left", time.Duration(y.GetEtaSeconds())*time.Second)
	}
	return text
}

// damagePairs name the blocks that cannot be read.
func damagePairs(d *pb.Damage) []string {
	var pairs []string
	add := func(name string, offs []uint64, what string) {
		if len(offs) == 0 {
			return
		}
		pairs = append(pairs, name, fmt.Sprintf("%d blocks of 4KiB: %s; at %s", len(offs), what, strings.Trim(fmt.Sprint(offs), "[]")))
	}
	add("ALARM: DIFFERS", d.GetDiffersOffsets(), "replicas differ and each vouches for its data. Reads fail until they are written. Save both images, report it")
	add("ALARM: LOST", d.GetLostOffsets(), "no replica in sync has them right. Reads fail until they are written")
	if n := d.GetMoreBlocks(); n > 0 {
		pairs = append(pairs, "And more", fmt.Sprintf("%d blocks", n))
	}
	return pairs
}

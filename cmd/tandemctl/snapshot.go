package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

func (a *app) snapshots() (pb.SnapshotsClient, error) {
	c, err := a.connect()
	return pb.NewSnapshotsClient(c), err
}

// askSnapshot makes one request of the service for snapshots.
func askSnapshot[Q, R any](ctx context.Context, a *app, call func(pb.SnapshotsClient, context.Context, Q) (R, error), q Q) (r R, err error) {
	client, err := a.snapshots()
	if err != nil {
		return r, err
	}
	ctx, cancel := a.withTimeout(ctx)
	defer cancel()
	return call(client, ctx, q)
}

// twoNames wants exactly two arguments.
func twoNames(first, second string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 2 || args[0] == "" || args[1] == "" {
			return usageError("want %s and %s", first, second)
		}
		return nil
	}
}

// addFreeze adds the flag that says whether file systems are frozen for a snapshot.
func addFreeze(cmd *cobra.Command, freeze *bool) {
	cmd.Flags().BoolVar(freeze, "freeze", true, "freeze the file system, where it is mounted, for the moment of the cut")
}

// consistencyText says what a file system finds in a snapshot.
func consistencyText(s *pb.Snapshot) string {
	switch {
	case s.GetFrozen():
		return "file system (frozen at the cut)"
	case s.GetNotFrozen() != "":
		return "crash (not frozen: " + s.GetNotFrozen() + ")"
	default:
		return "crash"
	}
}

// freesText is what the deletion of a snapshot would give back where it is held.
func freesText(h *pb.SnapshotHolder) string {
	if why := h.GetFreesUnknown(); why != "" {
		return "unknown (" + why + ")"
	}
	return bytesText(uint64(h.GetFreesBytes()))
}

// allFreesText is what the deletion of a snapshot would give back everywhere, or on how many of its holders that is known.
func allFreesText(s *pb.Snapshot) string {
	if s.GetState() != pb.SnapshotState_SNAPSHOT_STATE_READY {
		return "-"
	}
	var sum int64
	known := 0
	for _, h := range s.GetHolders() {
		if h.GetFreesUnknown() == "" {
			sum, known = sum+h.GetFreesBytes(), known+1
		}
	}
	switch all := len(s.GetHolders()); known {
	case all:
		return bytesText(uint64(sum))
	case 0:
		return "unknown"
	default:
		return fmt.Sprintf("%s on %d of %d", bytesText(uint64(sum)), known, all)
	}
}

func (a *app) snapshotCreateCommand() *cobra.Command {
	var order orderFlags
	var freeze bool
	cmd := &cobra.Command{
		Use:   "create VOLUME SNAPSHOT",
		Short: "Take a snapshot of a volume",
		Long: `Take a snapshot of a volume, and return when every replica that is in sync holds it. What was written before and acknowledged is in it. Writes wait for some milliseconds. It takes no
space before the volume is written to.

If its file system is mounted on the node where it is attached, through a device of this cluster, it is frozen for that moment: what was written to files is in the snapshot then, whether
it was synced or not. Where that cannot be done in 10 seconds, or with --freeze=false, the snapshot is taken all the same, and a file system on it is found as after a power cut; "inspect" says which.

Every replica in sync has to lie in a pool on XFS with reflink. A snapshot that exists with that name and is of the same volume is not taken again.`,
		Example: `  tandemctl volume snapshot create data before-upgrade`,
		Args:    twoNames("VOLUME", "the name of the SNAPSHOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			call := func(c pb.SnapshotsClient, ctx context.Context, q *pb.CreateSnapshotRequest) (*pb.CreateSnapshotResponse, error) {
				return c.CreateSnapshot(ctx, q)
			}
			resp, err := askSnapshot(cmd.Context(), a, call, &pb.CreateSnapshotRequest{Volume: args[0], Name: args[1], NoFreeze: !freeze, Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				s := resp.GetSnapshot()
				fmt.Fprintf(w, "Snapshot %s of volume %s is held by %d replicas (id %s)\n", s.GetName(), s.GetVolumeName(), len(s.GetHolders()), s.GetId())
			})
		},
	}
	addFreeze(cmd, &freeze)
	order.add(cmd)
	return cmd
}

func (a *app) snapshotListCommand() *cobra.Command {
	var req pb.ListSnapshotsRequest
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the snapshots",
		Long: `List the snapshots. With --space, FREES is what the deletion of each one alone would give back at this moment, on all its holders together: their nodes take a look at each chunk, which may take
seconds. That of two together may be more than the sum.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			call := func(c pb.SnapshotsClient, ctx context.Context, q *pb.ListSnapshotsRequest) (*pb.ListSnapshotsResponse, error) {
				return c.ListSnapshots(ctx, q)
			}
			l, err := askSnapshot(cmd.Context(), a, call, &req)
			if err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) {
				rows := [][]string{{"VOLUME", "SNAPSHOT", "ID", "SIZE", "CREATED", "STATE", "HELD BY"}}
				if req.Space {
					rows[0] = append(rows[0], "FREES")
				}
				for _, s := range l.GetSnapshots() {
					row := []string{s.GetVolumeName(), s.GetName(), s.GetId(), bytesText(s.GetSizeBytes()), timeText(s.GetCreatedUnixMs()),
						enumText(s.GetState(), "SNAPSHOT_STATE_"), fmt.Sprint(len(s.GetHolders()))}
					if req.Space {
						row = append(row, allFreesText(s))
					}
					rows = append(rows, row)
				}
				table(w, rows...)
			})
		},
	}
	cmd.Flags().StringVar(&req.Volume, "volume", "", "only those of this `volume`")
	cmd.Flags().BoolVar(&req.Space, "space", false, "ask the holders what the deletion of each would give back")
	return cmd
}

func (a *app) snapshotInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect SNAPSHOT",
		Short: "Show one snapshot, which replicas hold it, and what it takes",
		Long: `Show one snapshot, and which replicas hold it. FREES is what its deletion would give back to the pool at this moment: what neither the volume, nor another snapshot, nor a volume that was made
from it shares with it. That of two together may be more than the sum.`,
		Args: oneName("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			call := func(c pb.SnapshotsClient, ctx context.Context, q *pb.GetSnapshotRequest) (*pb.GetSnapshotResponse, error) {
				return c.GetSnapshot(ctx, q)
			}
			resp, err := askSnapshot(cmd.Context(), a, call, &pb.GetSnapshotRequest{Snapshot: args[0], Space: true})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				s := resp.GetSnapshot()
				table(w, []string{"Name", s.GetName()}, []string{"Id", s.GetId()}, []string{"Volume", s.GetVolumeName() + " (" + s.GetVolumeId() + ")"},
					[]string{"Size", bytesText(s.GetSizeBytes())}, []string{"Created", timeText(s.GetCreatedUnixMs())},
					[]string{"State", enumText(s.GetState(), "SNAPSHOT_STATE_")}, []string{"Group snapshot", s.GetGroupSnapshotId()}, []string{"Consistency", consistencyText(s)})
				fmt.Fprintln(w)
				rows := [][]string{{"DOMAIN", "NODE", "POOL", "REPLICA", "FREES"}}
				for _, h := range s.GetHolders() {
					rows = append(rows, []string{h.GetDomain(), h.GetNode(), h.GetPool(), h.GetReplica(), freesText(h)})
				}
				table(w, rows...)
			})
		},
	}
}

func (a *app) snapshotDeleteCommand() *cobra.Command {
	var yes bool
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "delete SNAPSHOT",
		Short: "Delete a snapshot",
		Long: `Delete a snapshot, after asking. Snapshots of a volume are deleted in any order, and volumes that were made from one stay. One that does not exist counts as deleted. Its holders
give the space back soon, those on nodes that are away when these return.`,
		Args: oneName("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := a.confirm(fmt.Sprintf("Snapshot %s will be lost for good. Delete it?", args[0])); err != nil {
					return err
				}
			}
			call := func(c pb.SnapshotsClient, ctx context.Context, q *pb.DeleteSnapshotRequest) (*pb.DeleteSnapshotResponse, error) {
				return c.DeleteSnapshot(ctx, q)
			}
			resp, err := askSnapshot(cmd.Context(), a, call, &pb.DeleteSnapshotRequest{Snapshot: args[0], Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { fmt.Fprintf(w, "Snapshot %s is deleted\n", args[0]) })
		},
	}
	order.add(cmd)
	addYes(cmd, &yes)
	return cmd
}

func (a *app) snapshotRevertCommand() *cobra.Command {
	var yes, abandon bool
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "revert VOLUME [SNAPSHOT]",
		Short: "Put a volume back to what one of its snapshots has",
		Long: `Put a volume back to what one of its snapshots has, after asking, on all its replicas, and return when that is done. The volume has to be detached, and is nobody's until the end: it can be neither attached nor
snapshotted. First a snapshot is taken of what it has, named before-revert-..., to revert to if this was a mistake; delete it when it is not needed any more. Snapshots that are newer than the one named stay. The volume keeps its size.

What differs is copied, so it takes a time and, in the pools, space for that. If it ends in the middle, by whatever it is, the same command goes on with it, asked of any node; the time limit of --timeout counts
only if it is given.

If no replica in sync holds the snapshot any more the revert cannot go on. --abandon ends it: the volume can be attached again, and is partly what the snapshot has and partly what it had before. Revert it to another snapshot then.`,
		Example: `  tandemctl host detach data
  tandemctl volume snapshot revert data before-upgrade`,
		Args: func(_ *cobra.Command, args []string) error {
			want := 2
			if abandon {
				want = 1
			}
			if len(args) != want || args[0] == "" || args[len(args)-1] == "" {
				return usageError("want VOLUME and SNAPSHOT, or VOLUME and --abandon")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pb.RevertVolumeRequest{Volume: args[0], Abandon: abandon, Reason: order.reason, Actor: a.actor()}
			question := fmt.Sprintf("Volume %s will be partly what the snapshot has and partly what it had before. Give the revert up?", args[0])
			if !abandon {
				req.Snapshot = args[1]
				question = fmt.Sprintf("Volume %s will be put back to snapshot %s; what was written since is kept in a snapshot only. Go on with it?", args[0], args[1])
			}
			if !yes {
				if err := a.confirm(question); err != nil {
					return err
				}
			}
			client, err := a.snapshots()
			if err != nil {
				return err
			}
			ctx, cancel := a.forWaiting(cmd.Context())
			defer cancel()
			resp, err := client.RevertVolume(ctx, req)
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				if abandon {
					fmt.Fprintf(w, "The revert of volume %s is given up; it is partly what it was put back to and partly what it had before\n", args[0])
					return
				}
				fmt.Fprintf(w, "Volume %s is put back to snapshot %s, %s were copied; what it had before is snapshot %s\n", args[0], args[1], bytesText(resp.GetWrittenBytes()), resp.GetBefore())
			})
		},
	}
	cmd.Flags().BoolVar(&abandon, "abandon", false, "give up a revert that was begun and cannot go on")
	order.add(cmd)
	addYes(cmd, &yes)
	return cmd
}

func (a *app) snapshotRestoreCommand() *cobra.Command {
	return a.copyCommand("restore SNAPSHOT VOLUME", "SNAPSHOT", "Make a new volume that begins with what a snapshot has",
		`Make a new volume that begins with what a snapshot has, and return when all its replicas are made. Its replicas lie where the snapshot is held, in the same pools, and share with it
what neither changes: nothing is copied. The volume of the snapshot is not touched.`,
		`  tandemctl volume snapshot restore before-upgrade data-as-it-was`,
		func(r *pb.CreateVolumeRequest, from string) { r.FromSnapshot = from })
}

func (a *app) volumeCloneCommand() *cobra.Command {
	return a.copyCommand("clone VOLUME NEW", "VOLUME", "Make a new volume that begins with what another one has now",
		`Make a new volume that begins with what another one has now, which may be attached and written to, and return when all its replicas are made. They lie where the other one's are, in the same
pools, and share with them what neither changes: nothing is copied.`,
		`  tandemctl volume clone data data-for-tests`,
		func(r *pb.CreateVolumeRequest, from string) { r.FromVolume = from })
}

// copyCommand makes a volume from what from names, the first argument.
func (a *app) copyCommand(use, first, short, long, example string, from func(*pb.CreateVolumeRequest, string)) *cobra.Command {
	var p protectionFlags
	var replicas uint32
	var domains string
	var labels map[string]string
	var order orderFlags
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example, Args: twoNames(first, "the name of the new VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var mode pb.Protection
			var needs pb.Needs
			if err := p.apply(cmd.Flags(), &mode, &needs); err != nil {
				return err
			}
			in := splitList(domains)
			if cmd.Flags().Changed("domains") && len(in) == 0 {
				return usageError("--domains names no domain")
			}
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			r := &pb.CreateVolumeRequest{
				Name: args[1], Replicas: replicas, Protection: mode, Needs: needsOrNil(&needs), Domains: in, Labels: labels, Reason: order.reason, Actor: a.actor(),
			}
			from(r, args[0])
			resp, err := client.CreateVolume(ctx, r)
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				fmt.Fprintf(w, "Volume successfully created: %s (id %s)\n", resp.GetVolume().GetName(), resp.GetVolume().GetId())
			})
		},
	}
	f := cmd.Flags()
	f.Uint32VarP(&replicas, "replicas", "r", 0, "number of replicas, at most as many as hold the snapshot; 0: all of these")
	p.register(f)
	f.StringVar(&domains, "domains", "", "place replicas in these `domains` only, with commas")
	f.StringToStringVarP(&labels, "label", "l", nil, "labels, as in `app=db,tier=1`")
	order.add(cmd)
	return cmd
}

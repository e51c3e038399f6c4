package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// askGroupSnapshot makes one request of the service for group snapshots.
func askGroupSnapshot[Q, R any](ctx context.Context, a *app, call func(pb.GroupSnapshotsClient, context.Context, Q) (R, error), q Q) (r R, err error) {
	cc, err := a.connect()
	if err != nil {
		return r, err
	}
	ctx, cancel := a.withTimeout(ctx)
	defer cancel()
	return call(pb.NewGroupSnapshotsClient(cc), ctx, q)
}

func (a *app) groupSnapshotCreateCommand() *cobra.Command {
	var volumes, groupName string
	var order orderFlags
	var freeze bool
	cmd := &cobra.Command{
		Use:     "create-group SNAPSHOT",
		Aliases: []string{"group"},
		Short:   "Take snapshots of several volumes at one moment",
		Long: `Take snapshots of several volumes at one moment: of those that are named, or of all volumes of a consistency group. What had been acknowledged by any of them before is in the snapshots,
and nothing that was asked for after an acknowledgement that is not. All are taken, or none. The volumes may be attached on different nodes, or not attached. Writes of all of them wait for
some milliseconds. Their file systems are frozen as by "snapshot create".

The snapshot of volume V is named SNAPSHOT.V. Each can be restored by itself; they are deleted together. A group snapshot that exists with that name and is of the same volumes is not taken again.
It ends with exit code 7 when it could not be taken at one moment; nothing was taken then, and writes go on.`,
		Example: `  tandemctl volume snapshot create-group before-upgrade --volumes erp-data,erp-log
  tandemctl volume snapshot create-group before-upgrade --group erp`,
		Args: oneName("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			list := splitList(volumes)
			if (len(list) == 0) == (groupName == "") {
				return usageError("want either --volumes or --group")
			}
			call := func(c pb.GroupSnapshotsClient, ctx context.Context, q *pb.CreateGroupSnapshotRequest) (*pb.CreateGroupSnapshotResponse, error) {
				return c.CreateGroupSnapshot(ctx, q)
			}
			resp, err := askGroupSnapshot(cmd.Context(), a, call, &pb.CreateGroupSnapshotRequest{Name: args[0], Volumes: list, Group: groupName, NoFreeze: !freeze, Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				g := resp.GetGroupSnapshot()
				fmt.Fprintf(w, "Group snapshot %s of %d volumes is taken (id %s)\n", g.GetName(), len(g.GetSnapshots()), g.GetId())
			})
		},
	}
	cmd.Flags().StringVar(&volumes, "volumes", "", "the `volumes`, with commas, at most 40")
	cmd.Flags().StringVar(&groupName, "group", "", "all volumes of this consistency `group`")
	addFreeze(cmd, &freeze)
	order.add(cmd)
	return cmd
}

func (a *app) groupSnapshotListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list-groups",
		Short: "List the group snapshots",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			call := func(c pb.GroupSnapshotsClient, ctx context.Context, q *pb.ListGroupSnapshotsRequest) (*pb.ListGroupSnapshotsResponse, error) {
				return c.ListGroupSnapshots(ctx, q)
			}
			l, err := askGroupSnapshot(cmd.Context(), a, call, &pb.ListGroupSnapshotsRequest{})
			if err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) {
				rows := [][]string{{"SNAPSHOT", "ID", "GROUP", "VOLUMES", "CREATED", "STATE"}}
				for _, g := range l.GetGroupSnapshots() {
					rows = append(rows, []string{g.GetName(), g.GetId(), g.GetGroup(), fmt.Sprint(len(g.GetSnapshots())), timeText(g.GetCreatedUnixMs()), enumText(g.GetState(), "SNAPSHOT_STATE_")})
				}
				table(w, rows...)
			})
		},
	}
}

func (a *app) groupSnapshotInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect-group SNAPSHOT",
		Short: "Show one group snapshot, and its snapshots",
		Args:  oneName("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			call := func(c pb.GroupSnapshotsClient, ctx context.Context, q *pb.GetGroupSnapshotRequest) (*pb.GetGroupSnapshotResponse, error) {
				return c.GetGroupSnapshot(ctx, q)
			}
			resp, err := askGroupSnapshot(cmd.Context(), a, call, &pb.GetGroupSnapshotRequest{GroupSnapshot: args[0]})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				g := resp.GetGroupSnapshot()
				fields(w, "Name", g.GetName(), "Id", g.GetId(), "Group", g.GetGroup(), "Created", timeText(g.GetCreatedUnixMs()), "State", enumText(g.GetState(), "SNAPSHOT_STATE_"))
				rows := [][]string{{"VOLUME", "SNAPSHOT", "ID", "SIZE", "HELD BY", "CONSISTENCY"}}
				for _, s := range g.GetSnapshots() {
					rows = append(rows, []string{s.GetVolumeName(), s.GetName(), s.GetId(), bytesText(s.GetSizeBytes()), fmt.Sprint(len(s.GetHolders())), consistencyText(s)})
				}
				fmt.Fprintln(w)
				table(w, rows...)
			})
		},
	}
}

func (a *app) groupSnapshotDeleteCommand() *cobra.Command {
	var yes bool
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "delete-group SNAPSHOT",
		Short: "Delete a group snapshot with all its snapshots",
		Long: `Delete a group snapshot with all its snapshots, after asking. Volumes that were made from them stay. One that does not exist counts as deleted. Their holders give the space back soon,
those on nodes that are away when these return.`,
		Args: oneName("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := a.confirm(fmt.Sprintf("Group snapshot %s will be lost for good, with the snapshots of all its volumes. Delete it?", args[0])); err != nil {
					return err
				}
			}
			call := func(c pb.GroupSnapshotsClient, ctx context.Context, q *pb.DeleteGroupSnapshotRequest) (*pb.DeleteGroupSnapshotResponse, error) {
				return c.DeleteGroupSnapshot(ctx, q)
			}
			resp, err := askGroupSnapshot(cmd.Context(), a, call, &pb.DeleteGroupSnapshotRequest{GroupSnapshot: args[0], Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { fmt.Fprintf(w, "Group snapshot %s is deleted\n", args[0]) })
		},
	}
	order.add(cmd)
	addYes(cmd, &yes)
	return cmd
}

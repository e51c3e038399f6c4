package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// failovers are the values of --failover.
var failovers = map[string]pb.Failover{"automatic": pb.Failover_FAILOVER_AUTOMATIC, "manual": pb.Failover_FAILOVER_MANUAL}

// askGroup makes one request of the service for groups.
func askGroup[Q, R any](ctx context.Context, a *app, call func(pb.GroupsClient, context.Context, Q) (R, error), q Q) (r R, err error) {
	client, err := a.groups()
	if err != nil {
		return r, err
	}
	ctx, cancel := a.withTimeout(ctx)
	defer cancel()
	return call(client, ctx, q)
}

func (a *app) groupCreateCommand() *cobra.Command {
	var failover, volumes string
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "create GROUP",
		Short: "Create a consistency group",
		Long: `Create a consistency group: volumes whose writes depend on each other, as those of a database with its log on another volume. When the replicas of
one of them in a cluster domain (site) can no longer follow, those of the others there stop with it, so that the domain keeps an image of
all of them at one moment.

Creating a group that exists with the same volumes succeeds and changes nothing.`,
		Example: `  tandemctl group create erp --volumes erp-data,erp-log`,
		Args:    oneName("GROUP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, ok := failovers[failover]
			if !ok {
				return usageError("--failover %q: use automatic or manual", failover)
			}
			call := func(c pb.GroupsClient, ctx context.Context, q *pb.CreateGroupRequest) (*pb.CreateGroupResponse, error) {
				return c.CreateGroup(ctx, q)
			}
			resp, err := askGroup(cmd.Context(), a, call, &pb.CreateGroupRequest{Name: args[0], Volumes: splitList(volumes), Failover: f, Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				fmt.Fprintf(w, "Group successfully created: %s (%d volumes)\n", resp.GetGroup().GetName(), len(resp.GetGroup().GetVolumes()))
			})
		},
	}
	cmd.Flags().StringVar(&volumes, "volumes", "", "the `volumes` of the group, with commas")
	cmd.Flags().StringVar(&failover, "failover", "automatic", "`who` may fail the group over when a domain is lost: automatic or manual")
	order.add(cmd)
	return cmd
}

func (a *app) groupListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the consistency groups",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			call := func(c pb.GroupsClient, ctx context.Context, q *pb.ListGroupsRequest) (*pb.ListGroupsResponse, error) {
				return c.ListGroups(ctx, q)
			}
			l, err := askGroup(cmd.Context(), a, call, &pb.ListGroupsRequest{})
			if err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) {
				rows := [][]string{{"NAME", "STATE", "VOLUMES", "FAILOVER"}}
				for _, g := range l.GetGroups() {
					rows = append(rows, []string{g.GetName(), enumText(g.GetState(), "GROUP_STATE_"), fmt.Sprint(len(g.GetVolumes())), groupFailover(g)})
				}
				table(w, rows...)
			})
		},
	}
}

func groupFailover(g *pb.Group) string {
	return strings.ToLower(enumText(g.GetFailover(), "FAILOVER_"))
}

func (a *app) groupInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect GROUP",
		Short: "Show one group, and what its replicas in each domain are worth together",
		Args:  oneName("GROUP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			call := func(c pb.GroupsClient, ctx context.Context, q *pb.InspectGroupRequest) (*pb.InspectGroupResponse, error) {
				return c.InspectGroup(ctx, q)
			}
			resp, err := askGroup(cmd.Context(), a, call, &pb.InspectGroupRequest{Group: args[0]})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { groupTable(w, resp.GetGroup()) })
		},
	}
}

func groupTable(w io.Writer, g *pb.Group) {
	fields(w, "Group", g.GetName(), "State", enumText(g.GetState(), "GROUP_STATE_"), "Failover", groupFailover(g), "Created", timeText(g.GetCreatedUnixMs()))
	rows := [][]string{{"VOLUME", "ID", "ATTACHED ON"}}
	for _, v := range g.GetVolumes() {
		rows = append(rows, []string{v.GetName(), v.GetId(), v.GetNode()})
	}
	fmt.Fprintln(w)
	table(w, rows...)
	rows = [][]string{{"DOMAIN", "IN SYNC", "CONSISTENT", "SPLIT SINCE", "REASON"}}
	for _, s := range g.GetSides() {
		rows = append(rows, []string{s.GetDomain(), yesNo(s.GetInSync()), yesNo(s.GetConsistent()), timeText(s.GetSplitUnixMs()), s.GetReason()})
	}
	fmt.Fprintln(w)
	table(w, rows...)
}

// groupChangeCommand adds or removes the volumes of --volumes.
func (a *app) groupChangeCommand(cmd *cobra.Command, request func(group string, volumes []string) *pb.ChangeGroupRequest) *cobra.Command {
	var volumes string
	var order orderFlags
	cmd.Args = oneName("GROUP")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		list := splitList(volumes)
		if len(list) == 0 {
			return usageError("--volumes names no volume")
		}
		q := request(args[0], list)
		q.Reason, q.Actor = order.reason, a.actor()
		return a.groupChange(cmd.Context(), q)
	}
	cmd.Flags().StringVar(&volumes, "volumes", "", "the `volumes`, with commas")
	order.add(cmd)
	_ = cmd.MarkFlagRequired("volumes") // the flag is there: see above
	return cmd
}

func (a *app) groupChange(ctx context.Context, q *pb.ChangeGroupRequest) error {
	call := func(c pb.GroupsClient, ctx context.Context, q *pb.ChangeGroupRequest) (*pb.ChangeGroupResponse, error) {
		return c.ChangeGroup(ctx, q)
	}
	resp, err := askGroup(ctx, a, call, q)
	if err != nil {
		return err
	}
	return a.print(resp, func(w io.Writer) {
		fmt.Fprintf(w, "Group %s has %d volumes now\n", resp.GetGroup().GetName(), len(resp.GetGroup().GetVolumes()))
	})
}

func (a *app) groupAddCommand() *cobra.Command {
	return a.groupChangeCommand(&cobra.Command{
		Use:   "add GROUP --volumes VOLUMES",
		Short: "Put volumes into a group",
		Long: `Put volumes into a group. A volume is in one group at most. Where the group is split from a domain, or a volume is not in sync there, the replicas
in that domain are consistent with each other again when all of them are in sync.`,
	}, func(group string, volumes []string) *pb.ChangeGroupRequest {
		return &pb.ChangeGroupRequest{Group: group, AddVolumes: volumes}
	})
}

func (a *app) groupRemoveCommand() *cobra.Command {
	return a.groupChangeCommand(&cobra.Command{
		Use:   "remove GROUP --volumes VOLUMES",
		Short: "Take volumes out of a group",
	}, func(group string, volumes []string) *pb.ChangeGroupRequest {
		return &pb.ChangeGroupRequest{Group: group, RemoveVolumes: volumes}
	})
}

func (a *app) groupDeleteCommand() *cobra.Command {
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "delete GROUP",
		Short: "Delete a group; its volumes stay",
		Args:  oneName("GROUP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			call := func(c pb.GroupsClient, ctx context.Context, q *pb.DeleteGroupRequest) (*pb.DeleteGroupResponse, error) {
				return c.DeleteGroup(ctx, q)
			}
			resp, err := askGroup(cmd.Context(), a, call, &pb.DeleteGroupRequest{Group: args[0], Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { fmt.Fprintf(w, "Group %s is deleted, its volumes are not\n", args[0]) })
		},
	}
	order.add(cmd)
	return cmd
}

func (a *app) groupCutCommand() *cobra.Command {
	var hold time.Duration
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "cut GROUP",
		Short: "Hold the writes of all volumes of a group at once, and tell where each stands",
		Long: `Hold the writes of all volumes of a group at once for a moment, and tell where each stands: what had been acknowledged by any of them is in the cut,
and nothing that was asked for after an acknowledgement that is not. Reads go on. It ends with exit code 7 when not all could be held at once;
nothing was cut then, and writes go on.`,
		Args: oneName("GROUP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if hold < time.Millisecond {
				return usageError("--hold %v: use 1ms to 5s", hold)
			}
			call := func(c pb.GroupsClient, ctx context.Context, q *pb.CutGroupRequest) (*pb.CutGroupResponse, error) {
				return c.CutGroup(ctx, q)
			}
			resp, err := askGroup(cmd.Context(), a, call, &pb.CutGroupRequest{Group: args[0], HoldMs: uint64(hold.Milliseconds()), Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				fields(w, "Cut", resp.GetOp(), "Held for", (time.Duration(resp.GetHoldUs()) * time.Microsecond).String())
				rows := [][]string{{"VOLUME", "NODE", "EPOCH", "TERM", "SEQ", "WRITES"}}
				for _, p := range resp.GetPositions() {
					rows = append(rows, []string{p.GetName(), p.GetNode(), fmt.Sprint(p.GetEpoch()), fmt.Sprint(p.GetTerm()), fmt.Sprint(p.GetSeq()), fmt.Sprint(p.GetWrites())})
				}
				fmt.Fprintln(w)
				table(w, rows...)
			})
		},
	}
	cmd.Flags().DurationVar(&hold, "hold", time.Second, "longest `time` that the writes of a volume wait, at most 5s")
	order.add(cmd)
	return cmd
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	domainpb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// movesAtOnce bounds how many volumes are moved at the same time.
const movesAtOnce = 8

// moveResult is the answer about one volume.
type moveResult struct {
	move *pb.Move
	err  error
}

// switchover is a planned move of volumes to a domain.
type switchover struct {
	to, node, reason string
	volumes, groups  []string
	groupOf          map[string]string // by volume, as far as it is known before the plan
	dryRun           bool
}

func (a *app) domainsSwitchoverCommand() *cobra.Command {
	s := switchover{groupOf: map[string]string{}}
	cmd := &cobra.Command{
		Use:   "switchover --to DOMAIN",
		Short: "Move attached volumes to another domain by plan, without an I/O error",
		Long: `Move attached volumes to a node of another domain that has an in-sync replica of them: all that are attached elsewhere, or
those that --volume or --group names. The plan is shown first; --dry-run ends there. Several move at the same time, and each is
reported with how long its requests waited.

If one volume of a group cannot move by the plan, none of those of the group that were asked for does. One that fails when the plan
is carried out stays where it is, and the others of its group are not moved back: that is told.

The consumer of a volume waits while it moves, and gets no error: its connection is closed when the volume is served on the
other node, and it asks again there what was not answered. For that it has to be an NBD client that connects again, to the
new URI. A loop device cannot follow: its volume is refused. If the other node does not come to serve in time the volume goes
on where it was.

The states of the domains stay as they are, except that a STANDBY domain is made ACTIVE first. Nothing returns by itself: the
way back is the same command with the other domain.`,
		Example: `  tandemctl cluster domains switchover --to dr-site --dry-run
  tandemctl cluster domains switchover --to dr-site --volume data --volume log --reason "maintenance of primary"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			return a.switchOver(ctx, &s)
		},
	}
	cmd.Flags().StringVar(&s.to, "to", "", "the `domain` to move to")
	cmd.Flags().StringVar(&s.node, "node", "", "a `node` of it; default: one that has an in-sync replica")
	cmd.Flags().StringSliceVar(&s.volumes, "volume", nil, "a `volume`, id or name; may be repeated; default: all that are attached in other domains")
	cmd.Flags().StringSliceVar(&s.groups, "group", nil, "a `group`, all volumes of which are to move; may be repeated")
	cmd.Flags().BoolVar(&s.dryRun, "dry-run", false, "tell what would be done, and do nothing")
	cmd.Flags().StringVar(&s.reason, "reason", "", "`why`, for the log of the node that gives a volume up")
	cmd.MarkFlagsMutuallyExclusive("volume", "group")
	_ = cmd.MarkFlagRequired("to") // the flag is there: see above
	return cmd
}

// switchOver shows the plan and carries it out.
func (a *app) switchOver(ctx context.Context, s *switchover) error {
	client, err := a.volumes()
	if err != nil {
		return err
	}
	if err := a.addGroups(ctx, s); err != nil {
		return err
	}
	if len(s.volumes)+len(s.groups) == 0 {
		if err := a.attachedElsewhere(ctx, client, s); err != nil {
			return err
		}
	}
	plan := s.each(ctx, client, a.actor(), true, nil)
	keepWhole(plan)
	if a.flags.output != outputJSON {
		moveTable(a.stdout, plan)
	}
	if s.dryRun {
		return a.movesDone(plan)
	}
	var moving []string
	for i := range plan {
		if m := plan[i].move; m.GetAction() == pb.SwitchOverAction_SWITCH_OVER_ACTION_MOVE {
			moving = append(moving, m.GetVolumeId())
			s.groupOf[m.GetVolumeId()] = m.GetGroup()
		}
	}
	if len(moving) > 0 {
		if err := a.standbyToActive(ctx, s); err != nil {
			return err
		}
	}
	s.volumes = moving
	var mu sync.Mutex
	done := s.each(ctx, client, a.actor(), false, func(r moveResult) {
		mu.Lock()
		defer mu.Unlock()
		if r.err == nil {
			fmt.Fprintln(a.stderr, movedText(r.move))
		}
	})
	tellTorn(a.stderr, s.to, done)
	for _, r := range plan {
		if r.move.GetAction() != pb.SwitchOverAction_SWITCH_OVER_ACTION_MOVE {
			done = append(done, r)
		}
	}
	return a.movesDone(done)
}

// attachedElsewhere adds the volumes that are attached in other domains than the one to move to.
func (a *app) attachedElsewhere(ctx context.Context, client pb.VolumesClient, s *switchover) error {
	resp, err := client.ListVolumes(ctx, &pb.ListVolumesRequest{})
	if err != nil {
		return err
	}
	for _, v := range resp.GetVolumes() {
		if at := v.GetAttachment(); at.GetNode() != "" && at.GetDomain() != s.to {
			s.volumes = append(s.volumes, v.GetId())
			s.groupOf[v.GetId()] = v.GetGroup()
		}
	}
	return nil
}

// standbyToActive makes a STANDBY domain ACTIVE: nothing is attached in it otherwise.
func (a *app) standbyToActive(ctx context.Context, s *switchover) error {
	domains, err := a.domains()
	if err != nil {
		return err
	}
	l, err := domains.ListDomains(ctx, &domainpb.ListDomainsRequest{})
	if err != nil {
		return err
	}
	for _, d := range l.GetDomains() {
		if d.GetName() != s.to || d.GetState() != domainpb.DomainState_DOMAIN_STATE_STANDBY {
			continue
		}
		epoch := d.GetEpoch()
		resp, err := domains.ActivateDomain(ctx, &domainpb.ActivateDomainRequest{
			Domain: s.to, ExpectedEpoch: &epoch, Actor: a.actor(), Reason: cmp.Or(s.reason, "switchover"),
		})
		if err != nil {
			return err
		}
		domainChanged(a.stderr, resp.GetDomain())
	}
	return nil
}

// each asks about every volume, some at the same time, in the order of volumes.
func (s *switchover) each(ctx context.Context, client pb.VolumesClient, actor string, dryRun bool, told func(moveResult)) []moveResult {
	all := make([]moveResult, len(s.volumes))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(movesAtOnce, len(s.volumes)) {
		workers.Go(func() {
			for i := range next {
				resp, err := client.SwitchOver(ctx, &pb.SwitchOverRequest{
					Volume: s.volumes[i], ToDomain: s.to, ToNode: s.node, DryRun: dryRun, Reason: s.reason, Actor: actor,
				})
				all[i] = moveResult{resp.GetMove(), err}
				if err != nil {
					all[i].move = &pb.Move{VolumeName: s.volumes[i], Group: s.groupOf[s.volumes[i]], Text: rpcstatus.FromStatus(err).Message}
				}
				if told != nil {
					told(all[i])
				}
			}
		})
	}
	for i := range s.volumes {
		next <- i
	}
	close(next)
	workers.Wait()
	return all
}

// movesDone prints what became of each volume, and fails if one that was to move did not.
func (a *app) movesDone(all []moveResult) error {
	slices.SortStableFunc(all, func(x, y moveResult) int { return cmp.Compare(x.move.GetVolumeName(), y.move.GetVolumeName()) })
	var err error
	list := &pb.SwitchOverList{}
	for _, r := range all {
		list.Moves = append(list.Moves, r.move)
		if r.err != nil && err == nil {
			err = r.err
		}
		if r.move.GetAction() == pb.SwitchOverAction_SWITCH_OVER_ACTION_REFUSED && err == nil {
			err = &cliError{exit: rpcstatus.ExitPrecondition, msg: fmt.Sprintf("volume %s is not moved: %s", r.move.GetVolumeName(), r.move.GetText())}
		}
	}
	if a.flags.output == outputJSON {
		if perr := a.print(list, nil); perr != nil {
			return perr
		}
	}
	return err
}

func moveTable(w io.Writer, all []moveResult) {
	if len(all) == 0 {
		fmt.Fprintln(w, "No volume is attached in another domain.")
		return
	}
	rows := [][]string{{"VOLUME", "GROUP", "FROM", "TO", "ROUND TRIP", "EXPECTED HOLD", "PLAN"}}
	for _, r := range all {
		m := r.move
		rows = append(rows, []string{m.GetVolumeName(), m.GetGroup(), m.GetFromNode(), m.GetToNode(), microsText(m.GetRoundTripUs()), microsText(m.GetExpectedHoldUs()), planText(m)})
	}
	table(w, rows...)
}

func planText(m *pb.Move) string {
	switch m.GetAction() {
	case pb.SwitchOverAction_SWITCH_OVER_ACTION_MOVE:
		return "move"
	case pb.SwitchOverAction_SWITCH_OVER_ACTION_REFUSED:
		return "refused: " + m.GetText()
	default:
		return strings.TrimSpace("nothing: " + m.GetText())
	}
}

func movedText(m *pb.Move) string {
	return fmt.Sprintf("Volume %s moved from %s to %s, requests waited %s: %s", m.GetVolumeName(), m.GetFromNode(), m.GetToNode(), microsText(m.GetHoldUs()), m.GetPath())
}

func microsText(us uint64) string {
	if us == 0 {
		return ""
	}
	return (time.Duration(us) * time.Microsecond).Round(100 * time.Microsecond).String()
}

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// addGroups adds the volumes of the groups that are to move, as far as they are attached.
func (a *app) addGroups(ctx context.Context, s *switchover) error {
	for _, name := range s.groups {
		call := func(c pb.GroupsClient, ctx context.Context, q *pb.InspectGroupRequest) (*pb.InspectGroupResponse, error) {
			return c.InspectGroup(ctx, q)
		}
		resp, err := askGroup(ctx, a, call, &pb.InspectGroupRequest{Group: name})
		if err != nil {
			return err
		}
		for _, v := range resp.GetGroup().GetVolumes() {
			if v.GetNode() != "" && !slices.Contains(s.volumes, v.GetId()) {
				s.volumes = append(s.volumes, v.GetId())
				s.groupOf[v.GetId()] = name
			}
		}
	}
	return nil
}

// keepWhole takes out of a plan what belongs to groups of which a volume cannot move.
func keepWhole(plan []moveResult) {
	stays := map[string]string{} // a volume, by group
	for _, r := range plan {
		if g := r.move.GetGroup(); g != "" && (r.err != nil || r.move.GetAction() == pb.SwitchOverAction_SWITCH_OVER_ACTION_REFUSED) {
			stays[g] = r.move.GetVolumeName()
		}
	}
	for _, r := range plan {
		if v, ok := stays[r.move.GetGroup()]; ok && r.move.GetAction() == pb.SwitchOverAction_SWITCH_OVER_ACTION_MOVE {
			r.move.Action = pb.SwitchOverAction_SWITCH_OVER_ACTION_REFUSED
			r.move.Text = fmt.Sprintf("volume %s of its group %s cannot move", v, r.move.GetGroup())
		}
	}
}

// tellTorn names the groups of which some volumes moved and others, which were to, did not.
func tellTorn(w io.Writer, to string, done []moveResult) {
	moved, left := map[string][]string{}, map[string][]string{}
	for _, r := range done {
		switch g := r.move.GetGroup(); {
		case g == "":
		case r.move.GetDone():
			moved[g] = append(moved[g], r.move.GetVolumeName())
		default:
			left[g] = append(left[g], r.move.GetVolumeName())
		}
	}
	for _, g := range slices.Sorted(maps.Keys(moved)) {
		if len(left[g]) > 0 {
			fmt.Fprintf(w, "Group %s is attached in two domains now: %s moved to %s, %s did not. Each goes on where it is; the loss of a domain stops only its own part, and until they are together there is no image of the group. Ask again, or move them back.\n",
				g, strings.Join(moved[g], ", "), to, strings.Join(left[g], ", "))
		}
	}
}

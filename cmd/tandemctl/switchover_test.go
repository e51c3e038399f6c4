package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

func planned(volume, group string, action pb.SwitchOverAction) moveResult {
	return moveResult{move: &pb.Move{VolumeId: volume, VolumeName: volume, Group: group, Action: action}}
}

// A group of which one volume cannot move stays as a whole, and nothing else does.
func TestKeepWhole(t *testing.T) {
	const move, refused = pb.SwitchOverAction_SWITCH_OVER_ACTION_MOVE, pb.SwitchOverAction_SWITCH_OVER_ACTION_REFUSED
	failed := planned("f", "h", pb.SwitchOverAction_SWITCH_OVER_ACTION_NONE)
	failed.err = errors.New("out of reach")
	plan := []moveResult{planned("a", "g", move), planned("b", "g", refused), planned("c", "i", move), planned("d", "", move), planned("e", "h", move), failed, planned("x", "", refused)}
	keepWhole(plan)
	var moves []string
	for _, r := range plan {
		if r.move.GetAction() == move {
			moves = append(moves, r.move.GetVolumeName())
		}
	}
	if !slices.Equal(moves, []string{"c", "d"}) || plan[0].move.GetText() != "volume b of its group g cannot move" {
		t.Errorf("%v %q", moves, plan[0].move.GetText())
	}
}

// A group of which some volumes moved and others did not is named with both; one that moved, or stayed, is not.
func TestTellTorn(t *testing.T) {
	done := func(volume, group string, moved bool) moveResult {
		r := planned(volume, group, pb.SwitchOverAction_SWITCH_OVER_ACTION_MOVE)
		r.move.Done = moved
		return r
	}
	var b strings.Builder
	tellTorn(&b, "dr-site", []moveResult{
		done("a", "g", true), done("b", "g", false), done("c", "whole", true), done("d", "whole", true), done("e", "stayed", false), done("x", "", true), done("y", "", false),
	})
	if got := b.String(); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "Group g is attached in two domains now: a moved to dr-site, b did not.") {
		t.Errorf("%q", got)
	}
}

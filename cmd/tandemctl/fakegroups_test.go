package main

import (
	"context"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// splitGroup is split from a domain.
func splitGroup() *volumepb.Group {
	return &volumepb.Group{
		Name: "db", CreatedUnixMs: started, Failover: volumepb.Failover_FAILOVER_AUTOMATIC, State: volumepb.GroupState_GROUP_STATE_SPLIT,
		Volumes: []*volumepb.GroupVolume{{Id: idData, Name: "data", Node: "a1"}, {Id: idLedger, Name: "ledger"}},
		Sides: []*volumepb.GroupSide{
			{Domain: "dr-site", Consistent: true, Reason: "since 2023-11-14T22:13:20Z nothing has been written there", Split: true, SplitUnixMs: started, SplitBy: idData},
			{Domain: "primary", InSync: true, Consistent: true, MayFailOver: true},
		},
	}
}

func (f *fakeDaemon) CreateGroup(_ context.Context, r *volumepb.CreateGroupRequest) (*volumepb.CreateGroupResponse, error) {
	f.note(r)
	return &volumepb.CreateGroupResponse{Group: splitGroup()}, f.err
}

func (f *fakeDaemon) ListGroups(_ context.Context, r *volumepb.ListGroupsRequest) (*volumepb.ListGroupsResponse, error) {
	f.note(r)
	return &volumepb.ListGroupsResponse{Groups: []*volumepb.Group{splitGroup()}}, f.err
}

func (f *fakeDaemon) InspectGroup(_ context.Context, r *volumepb.InspectGroupRequest) (*volumepb.InspectGroupResponse, error) {
	f.note(r)
	return &volumepb.InspectGroupResponse{Group: splitGroup()}, f.err
}

func (f *fakeDaemon) ChangeGroup(_ context.Context, r *volumepb.ChangeGroupRequest) (*volumepb.ChangeGroupResponse, error) {
	f.note(r)
	return &volumepb.ChangeGroupResponse{Group: splitGroup()}, f.err
}

func (f *fakeDaemon) DeleteGroup(_ context.Context, r *volumepb.DeleteGroupRequest) (*volumepb.DeleteGroupResponse, error) {
	f.note(r)
	return &volumepb.DeleteGroupResponse{}, f.err
}

func (f *fakeDaemon) CutGroup(_ context.Context, r *volumepb.CutGroupRequest) (*volumepb.CutGroupResponse, error) {
	f.note(r)
	return &volumepb.CutGroupResponse{Op: idData, HoldUs: 41_250, Positions: []*volumepb.CutPosition{
		{VolumeId: idData, Name: "data", Node: "a1", Epoch: 5, Term: 4, Seq: 1234, Writes: 800}, {VolumeId: idLedger, Name: "ledger", Epoch: 3},
	}}, f.err
}

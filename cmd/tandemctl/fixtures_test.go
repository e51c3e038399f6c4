package main

import (
	"fmt"

	"github.com/tandem-storage/tandem/audit/auditpb"
	domainpb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

const (
	idData   = "6f1c2a34-0000-4000-8000-000000000001"
	idLedger = "6f1c2a34-0000-4000-8000-000000000002"
	started  = 1_700_000_000_000 // milliseconds
	gib      = 1 << 30
)

func errNoVolume(name string) error {
	return fmt.Errorf("%w: %q", replication.ErrVolumeNotFound, name)
}

func replica(n int, node, domain string) *volumepb.Replica {
	return &volumepb.Replica{Id: fmt.Sprintf("r%d", n), Node: node, Domain: domain, Pool: "/var/lib/tandem/pool",
		State: volumepb.ReplicaState_REPLICA_STATE_IN_SYNC, InSync: true, NodeOnline: true}
}

func detached() *volumepb.Volume {
	return &volumepb.Volume{
		Id: idData, Name: "data", SizeBytes: 2 * gib, ReplicasWanted: 2, InSync: 2,
		Protection: volumepb.Protection_PROTECTION_MAX_AVAILABILITY, Labels: map[string]string{"tier": "1", "app": "db"},
		CreatedUnixMs: started, Phase: volumepb.Phase_PHASE_DETACHED, Epoch: 3,
		Replicas: []*volumepb.Replica{replica(1, "b1", "dr-site"), replica(2, "a1", "primary")},
	}
}

func attached() *volumepb.Volume {
	v := detached()
	v.Phase, v.Epoch, v.Term = volumepb.Phase_PHASE_ACTIVE, 5, 5
	v.Attachment = &volumepb.Attachment{Node: "a1", Domain: "primary", Path: "/dev/loop0", Frontend: "fuseloop", AttachId: "at1"}
	return v
}

// degraded is stalled, and one of its replicas is being resynced.
func degraded(donePercent uint64) *volumepb.Volume {
	v := attached()
	v.Id, v.Name, v.Labels = idLedger, "ledger", nil
	v.Protection = volumepb.Protection_PROTECTION_MAX_PROTECTION
	v.Attachment.Node, v.Attachment.Path, v.Attachment.Frontend = "b1", "nbd+unix:///ledger?socket=/run/tandem/nbd.sock", "nbd"
	v.InSync, v.UnreconciledBytes = 1, 12<<20
	v.Stall = &volumepb.Stall{Cause: "need-replica", Text: "bring a1 back or set the protection to max-availability", SinceUnixMs: started}
	r := v.Replicas[1]
	r.State, r.InSync, r.Reason = volumepb.ReplicaState_REPLICA_STATE_SYNCING, false, "returned"
	r.ResyncTotalBytes, r.ResyncDoneBytes = gib, gib/100*donePercent
	r.DirtyBytes, r.ResyncBytesPerSecond, r.EtaSeconds = r.ResyncTotalBytes-r.ResyncDoneBytes, 120<<20, 5
	return v
}

// verifying is in the middle of a verify that has found everything there is to find.
func verifying() *volumepb.Volume {
	v := attached()
	v.Verify = &volumepb.Verify{Last: verified("8d1f", ""), Running: true, StartedUnixMs: started, DoneBytes: gib, TotalBytes: 2 * gib, BytesPerSecond: 16 << 20, EtaSeconds: 64,
		HealedBlocks: 20, RecomputedBlocks: 1, LastUnixMs: started}
	v.Damage = &volumepb.Damage{LostOffsets: []uint64{4096, 8192}, DiffersOffsets: []uint64{1 << 20}, MoreBlocks: 3}
	v.Replicas[0].HealedBlocks, v.Replicas[0].Suspect = 23, true
	return v
}

func domain(name string, state domainpb.DomainState, sync domainpb.SyncStatus, inSync uint32) *domainpb.Domain {
	return &domainpb.Domain{Name: name, State: state, Epoch: 4, Actor: "root@a1", Reason: "power is back", ChangedUnixMs: started,
		PrevState: domainpb.DomainState_DOMAIN_STATE_FENCED, NodesTotal: 2, NodesOnline: 2, Sync: sync, ReplicasTotal: 2, ReplicasInSync: inSync}
}

func domainActive(name string) *domainpb.Domain {
	return domain(name, domainpb.DomainState_DOMAIN_STATE_ACTIVE, domainpb.SyncStatus_SYNC_STATUS_IN_SYNC, 2)
}

func domainRejoining(name string) *domainpb.Domain {
	d := domain(name, domainpb.DomainState_DOMAIN_STATE_REJOINING, domainpb.SyncStatus_SYNC_STATUS_SYNC_IN_PROGRESS, 1)
	d.Epoch = 3
	return d
}

func clusterStatus() *domainpb.GetStatusResponse {
	pool := func(used uint64) []*domainpb.Pool {
		return []*domainpb.Pool{{Uuid: "p-1", Path: "/var/lib/tandem/pool", Fs: "xfs", TotalBytes: 100 * gib, UsedBytes: used, ProvisionedBytes: 4 * gib}}
	}
	online := domainpb.NodeState_NODE_STATE_ONLINE
	return &domainpb.GetStatusResponse{
		ClusterName: "metro", ClusterId: "c0ffee00-0000-4000-8000-000000000000", ThisNode: "a1", Version: "v0.1.0",
		Nodes: []*domainpb.Node{
			{Name: "b1", Domain: "dr-site", Address: "10.0.1.1:9701", State: online, Pools: pool(3 * gib), Version: "v0.1.0"},
			{Name: "a1", Domain: "primary", Address: "10.0.0.1:9701", State: online, Pools: pool(2 * gib), Version: "v0.1.0", ThisNode: true},
			{Name: "a2", Domain: "primary", Address: "10.0.0.2:9701", State: domainpb.NodeState_NODE_STATE_OFFLINE, Version: "v0.1.0"},
			{Name: "w", Domain: "third", Address: "10.0.2.1:9701", State: online, Version: "v0.1.0", Witness: true},
		},
		Kvdb: &domainpb.Kvdb{Kind: "raft", Healthy: true, Leader: "a1", Members: []*domainpb.KvdbMember{
			{Name: "a1", Address: "10.0.0.1:9702", Role: "leader", Healthy: true},
			{Name: "b1", Address: "10.0.1.1:9702", Role: "follower", Healthy: true},
			{Name: "w", Address: "10.0.2.1:9702", Role: "unknown", Healthy: false},
		}},
		Rtts: []*domainpb.Rtt{
			{Node: "b1", Domain: "dr-site", P50Us: 9500, P99Us: 12340, Samples: 120, Warning: true, LastSeenUnixMs: started + 99_000},
			{Node: "a2", Domain: "primary"},
		},
		Alerts: []*domainpb.Alert{
			{Code: "node-offline", Severity: domainpb.Severity_SEVERITY_ALARM, Resource: "node/a2", Text: "a2 has not been heard of for 1m40s"},
			{Code: "rtt-high", Severity: domainpb.Severity_SEVERITY_WARN, Resource: "node/b1", Text: "p99 is 12.34 ms, above 10 ms"},
		},
		Domains: []*domainpb.Domain{domainActive("dr-site"), domainActive("primary")},
	}
}

func fixture() *fakeDaemon {
	blocked := domainRejoining("primary")
	blocked.Blocked = []*domainpb.BlockedVolume{{VolumeId: idData, Cause: "not-attached", Text: "attach it, or its replica cannot be resynced"}}
	return &fakeDaemon{
		status:  clusterStatus(),
		domains: []*domainpb.ListDomainsResponse{{LocalDomain: "dr-site", Domains: []*domainpb.Domain{domainActive("dr-site"), blocked}}},
		volumes: []*volumepb.ListVolumesResponse{{
			Volumes: []*volumepb.Volume{attached(), degraded(45), {Id: "6f1c2a34-0000-4000-8000-000000000003", Name: "new", SizeBytes: 10 * gib, ReplicasWanted: 2,
				Protection: volumepb.Protection_PROTECTION_MAX_AVAILABILITY, Phase: volumepb.Phase_PHASE_CREATING, Progress: "b1 does not answer"}},
			Orphans: []*volumepb.Orphan{{Node: "a1", Pool: "/var/lib/tandem/pool", VolumeId: "v-gone", ReplicaId: "r-gone", Text: "left by a volume that was deleted while the node was away"}},
		}},
		change: domainActive("primary"),
		examined: &doctorpb.ExamineResponse{
			Verdict: doctorpb.Verdict_VERDICT_OK,
			Checks: []*doctorpb.Check{
				{Name: "rtt-p99", Subject: "a1 -> b1", Value: "1.20 ms (p50 0.80 ms)", Limit: "<= 10.00 ms", Verdict: doctorpb.Verdict_VERDICT_OK},
				{Name: "disk-sync", Subject: "a1 /pool", Value: "max 2.00 ms", Limit: "<= 50.00 ms (bad: 1000.00 ms)", Verdict: doctorpb.Verdict_VERDICT_OK},
			},
			Losses: []*doctorpb.DomainLoss{{Domain: "dr-site"}, {Domain: "primary", Volumes: []*doctorpb.VolumeLoss{
				{VolumeId: idData, Name: "data", Fate: "fails-over", Text: "would fail over to node b1", Nodes: []string{"b1"}},
				{VolumeId: idLedger, Fate: "stops", Text: "would stop: its only in-sync copy is in primary", Bad: true},
			}}},
		},
		trail: &auditpb.ListAuditResponse{
			Entries: []*auditpb.Entry{
				{Seq: 7, UnixMs: started, Node: "b1", Actor: "root@b1", Verb: "domain deactivate --peer-lost", Object: "domain/primary", Reason: "site is\ndark",
					Outcome: "FENCED, was ACTIVE", Epoch: 4, DataLossVolumes: []string{idData}, PrevHash: "00", Hash: "a1"},
				{Seq: 8, UnixMs: started + 9000, Node: "b1", Actor: "node b1", Verb: "domain settle", Object: "domain/primary", Outcome: "ACTIVE, was REJOINING", Epoch: 5,
					PrevHash: "a1", Hash: "b2"},
			},
		},
		verdict: &auditpb.VerifyAuditResponse{Intact: true, FirstSeq: 7, LastSeq: 8, LastHash: "b2"},
		imported: &volumepb.ImportKvdbResponse{
			Written: true,
			Volumes: []*volumepb.ImportedVolume{
				{Id: idData, Name: "data", Action: volumepb.ImportAction_IMPORT_ACTION_IMPORT, Text: "as it is served on node a1", KvdbEpoch: 7, ReplicaEpoch: 9, NewEpoch: 9, InSyncNodes: []string{"a1"}},
				{Id: "6f1c2a34-0000-4000-8000-000000000009", Name: "logs", Action: volumepb.ImportAction_IMPORT_ACTION_NONE, Text: "the kvdb knows as much as the replicas", KvdbEpoch: 4, ReplicaEpoch: 3},
			},
			SilentNodes: []*volumepb.SilentNode{{Node: "a2", Error: "node a2: connection refused"}},
		},
	}
}

func failedOver() *domainpb.FailoverReport {
	return &domainpb.FailoverReport{
		Id: 2, Domain: "primary", DomainEpoch: 5, To: "dr-site", Promoted: true, Actor: "arbiter on node b1", Nodes: []string{"a1", "a2"},
		Why:         "the registrations of 2 of 2 nodes are gone for 15 s, the kvdb was healthy for 15 s, no coordinator there was heard for 25 s",
		HeardUnixMs: started, GoneUnixMs: started + 10_200, FencedUnixMs: started + 25_300, MoreVolumes: 1,
		Volumes: []*domainpb.FailoverVolume{
			{Id: idLedger, Name: "ledger", FromNode: "a1", EpochBefore: 7, Cause: "last-copy", Text: "its last in-sync replica is here"},
			{Id: idData, Name: "data", FromNode: "a1", ToNode: "b1", EpochBefore: 5, EpochAfter: 7, AttachedUnixMs: started + 26_150, Attempts: 1,
				Receipt: receipt()},
			{Id: "6f1c2a34-0000-4000-8000-000000000003", Name: "new", FromNode: "a2", ToNode: "b1", EpochBefore: 3, Attempts: 2, Text: "no loop devices"},
		},
		Sum: &domainpb.FailoverSum{Volumes: 3, Moved: 1, Receipts: 1, Kept: 1, Exposed: 1, ExposedBytes: 4 << 20, ExposedUnknown: 1, Returned: 1, ReturnedBytes: 12 << 20, Verified: 1, Equal: 1},
	}
}

// lostDomains are a domain that was fenced by itself and one whose nodes are gone.
func lostDomains() []*domainpb.ListDomainsResponse {
	fenced := domain("primary", domainpb.DomainState_DOMAIN_STATE_FENCED, domainpb.SyncStatus_SYNC_STATUS_NOT_IN_SYNC, 0)
	fenced.FailoverId = 2
	lost := domainActive("third")
	lost.NodesOnline = 0
	lost.Failover = &domainpb.FailoverOutlook{Idle: "back-off", Text: "the last automatic failover was 20 s ago", LeftMs: 580_000}
	return []*domainpb.ListDomainsResponse{{LocalDomain: "dr-site", Domains: []*domainpb.Domain{domainActive("dr-site"), fenced, lost}}}
}

// exposed is a volume that lacks a replica, and did before.
func exposed() *volumepb.Exposure {
	missing := []*volumepb.MissingReplica{{ReplicaId: "r2", Node: "b1", Domain: "dr-site", Reason: "silent"}}
	return &volumepb.Exposure{
		EarlierCount: 2, EarlierMs: 7_200_000, EarlierResyncedBytes: gib, TotalCount: 5, TotalMs: 7_320_500, TotalResyncedBytes: gib + 12<<20,
		Past: []*volumepb.ExposedInterval{
			{LastedMs: 0, ToUnixMs: started - 100_000, FromEpoch: 3, ToEpoch: 4, Cause: "takeover", End: "join", Missing: missing, InSync: 1},
			{FromUnixMs: started - 60_000, ToUnixMs: started, LastedMs: 60_000, FromEpoch: 6, ToEpoch: 7, Cause: "evict", End: "join", Missing: missing,
				WithoutDomains: []string{"dr-site"}, InSync: 1, ResyncedBytes: 12 << 20},
		},
		Open: &volumepb.ExposedInterval{FromUnixMs: started + 40_000, LastedMs: 60_500, FromEpoch: 8, Cause: "evict", Missing: missing, WithoutDomains: []string{"dr-site"}, InSync: 1},
	}
}

// receipt is of a takeover that an arbiter began, after which the other side has returned.
func receipt() *domainpb.Receipt {
	return &domainpb.Receipt{
		From: &domainpb.Receipt_Attachment{Node: "a1", Domain: "primary", Id: "a-1", Term: 4}, To: &domainpb.Receipt_Attachment{Node: "b1", Domain: "dr-site", Id: "a-2", Term: 6},
		EpochBefore: 5, EpochAfter: 7, TakenUnixMs: started + 25_000, ServedUnixMs: started + 26_150, Attempts: 1,
		Fence: &domainpb.Receipt_Fence{State: "FENCED", Epoch: 4, Actor: "arbiter on node b1", Reason: "automatic failover 2: nothing\nwas heard", Failover: 2},
		Replicas: []*domainpb.Receipt_Replica{
			{Id: "r1", Node: "a1", Domain: "primary", InSyncBefore: true, Reason: "not reachable at takeover"},
			{Id: "r2", Node: "b1", Domain: "dr-site", InSyncBefore: true, InSyncAfter: true, Sealed: true, LastTerm: 4, LastSeq: 81_234},
		},
		Kept: true, Why: "every confirmed write is on b1, which was in sync until then", ReturnedUnixMs: started + 99_000, ReturnedBytes: 12 << 20,
		Verified: verified("8d1f", "8d1f"),
	}
}

// verified is a verify that found these digests, none for "".
func verified(a, b string) *domainpb.Verified {
	v := &domainpb.Verified{
		Node: "b1", BeganUnixMs: started + 100_000, EndedUnixMs: started + 140_000, EpochFrom: 9, EpochTo: 9, Bytes: 10 * gib, HealedBlocks: 1,
		Equal: a != "" && a == b, Sides: []*domainpb.Verified_Side{{Id: "r1", Node: "a1", Domain: "primary", Digest: a}, {Id: "r2", Node: "b1", Domain: "dr-site", Digest: b}},
	}
	if a == "" || b == "" {
		v.LostBlocks = 2
	} else if a != b {
		v.DiffersBlocks = 1
	}
	return v
}

// forced are the receipts of a replica that was forced by hand, and of a takeover that is not at its end.
func forced() []*domainpb.Receipt {
	return []*domainpb.Receipt{
		{
			From: &domainpb.Receipt_Attachment{}, To: &domainpb.Receipt_Attachment{}, EpochBefore: 9, EpochAfter: 10, TakenUnixMs: started, ServedUnixMs: started, Attempts: 1,
			Replicas: []*domainpb.Receipt_Replica{{Id: "r2", Node: "b1", Domain: "dr-site", InSyncAfter: true, Sealed: true, Lossy: true}},
			Exposed:  &domainpb.Receipt_Exposed{SinceUnixMs: started - 60_000, Epoch: 6, WithoutDomains: []string{"dr-site"}},
			Why:      "forced: what was confirmed after epoch 5 is lost", Forced: true, DataEpoch: 5, ReturnedUnixMs: started + 1000,
		},
		{
			From: &domainpb.Receipt_Attachment{Node: "b1", Domain: "dr-site", Id: "a-3", Term: 11}, To: &domainpb.Receipt_Attachment{Node: "b2", Domain: "dr-site", Id: "a-4", Term: 13},
			EpochBefore: 12, TakenUnixMs: started, Attempts: 2, Why: "it is not served yet", Exposed: &domainpb.Receipt_Exposed{Epoch: 10},
			Replicas: []*domainpb.Receipt_Replica{{Id: "r2", Node: "b1", Domain: "dr-site", InSyncBefore: true, Sealed: true}},
		},
	}
}

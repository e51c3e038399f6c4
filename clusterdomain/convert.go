package clusterdomain

import (
	"maps"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// Conversions to the messages of the API.

func domainsPB(v *View, vols []arbiter.Volume) []*clusterdomainpb.Domain {
	ds := make([]*clusterdomainpb.Domain, 0, len(v.Domains))
	for _, d := range v.Domains {
		ds = append(ds, domainPB(v, vols, d))
	}
	return ds
}

func domainPB(v *View, vols []arbiter.Volume, d Domain) *clusterdomainpb.Domain {
	r := &clusterdomainpb.Domain{
		Name: d.Name, State: statePB(d.State), Epoch: d.Epoch, PrevState: statePB(d.PrevState),
		Actor: d.Actor, Reason: d.Reason, ChangedUnixMs: unixMs(d.Time),
	}
	if d.Failover != nil {
		r.FailoverId = d.Failover.ID
	}
	for _, n := range v.Nodes {
		if n.Domain == d.Name && !n.Witness {
			r.NodesTotal++
			if n.Online {
				r.NodesOnline++
			}
		}
	}
	if vols == nil {
		return r
	}
	s := arbiter.SyncOf(vols, d.Name)
	r.ReplicasTotal, r.ReplicasInSync = uint32(s.Replicas), uint32(s.InSync)
	switch {
	case s.InSync == s.Replicas:
		r.Sync = clusterdomainpb.SyncStatus_SYNC_STATUS_IN_SYNC
	case s.Syncing:
		r.Sync = clusterdomainpb.SyncStatus_SYNC_STATUS_SYNC_IN_PROGRESS
	default:
		r.Sync = clusterdomainpb.SyncStatus_SYNC_STATUS_NOT_IN_SYNC
	}
	all := states(v.Domains)
	all[d.Name] = d.State // d may be newer than the view
	for _, b := range arbiter.Settle(arbiter.View{Domains: all, Volumes: vols}, d.Name, d.AcceptDataLoss).Blocked {
		r.Blocked = append(r.Blocked, &clusterdomainpb.BlockedVolume{VolumeId: b.Volume.ID, Cause: string(b.Cause), Text: b.Volume.Name + ": " + b.Text()})
	}
	return r
}

func statePB(s State) clusterdomainpb.DomainState {
	return clusterdomainpb.DomainState(clusterdomainpb.DomainState_value["DOMAIN_STATE_"+string(s)])
}

func nodePB(n Node, local string) *clusterdomainpb.Node {
	r := &clusterdomainpb.Node{
		Name: n.Name, Domain: n.Domain, Address: n.Address, State: clusterdomainpb.NodeState_NODE_STATE_OFFLINE,
		BootId: n.BootID, LastRegisteredUnixMs: unixMs(n.Time), ProtoMin: n.ProtoMin, ProtoMax: n.ProtoMax,
		ThisNode: n.Name == local, Version: n.Version, Witness: n.Witness, Labels: maps.Clone(n.Labels),
	}
	if n.Online {
		r.State = clusterdomainpb.NodeState_NODE_STATE_ONLINE
	}
	for _, p := range n.Pools {
		r.Pools = append(r.Pools, &clusterdomainpb.Pool{
			Uuid: p.UUID, Path: p.Path, Fs: p.FS, TotalBytes: uint64(p.Total), UsedBytes: uint64(p.Used), ProvisionedBytes: uint64(p.Provisioned), Class: p.Class,
		})
	}
	return r
}

func rttPB(t RTT) *clusterdomainpb.Rtt {
	return &clusterdomainpb.Rtt{
		Node: t.Node, Domain: t.Domain, P50Us: uint64(t.P50.Microseconds()), P99Us: uint64(t.P99.Microseconds()),
		Samples: uint32(t.Samples), Warning: t.High(), LastSeenUnixMs: unixMs(t.LastSeen),
	}
}

func kvdbPB(s KvdbStatus) *clusterdomainpb.Kvdb {
	r := &clusterdomainpb.Kvdb{Kind: s.Kind, Healthy: s.Err == nil, Endpoints: s.Endpoints, Leader: s.Leader}
	if s.Err != nil {
		r.Error = s.Err.Error()
	}
	for _, m := range s.Members {
		r.Members = append(r.Members, &clusterdomainpb.KvdbMember{Id: m.ID, Witness: m.Witness, Name: m.Name, Address: m.Address, Role: m.Role, Healthy: m.Healthy})
	}
	return r
}

func failoverPB(f *FailoverRecord) *clusterdomainpb.FailoverReport {
	r := &clusterdomainpb.FailoverReport{
		Id: f.ID, Domain: f.Domain, DomainEpoch: f.DomainEpoch, To: f.To, Promoted: f.Promoted, Actor: f.Actor, Why: f.Why, Nodes: f.Nodes,
		HeardUnixMs: unixMs(f.Heard), GoneUnixMs: unixMs(f.Gone), FencedUnixMs: unixMs(f.Fenced), MoreVolumes: uint32(f.More),
	}
	for i := range f.Volumes {
		v := &f.Volumes[i]
		p := &clusterdomainpb.FailoverVolume{
			Id: v.ID, Name: v.Name, FromNode: v.From, ToNode: v.To, EpochBefore: v.Epoch, Cause: string(v.Cause), Text: v.Text,
		}
		if mv := v.Moved; mv != nil {
			p.ToNode, p.EpochAfter, p.AttachedUnixMs, p.Attempts = mv.Node, mv.Epoch, unixMs(mv.Attached), uint32(mv.Attempts)
			p.Text = mv.Error
			if !mv.Attached.IsZero() {
				p.Cause = "" // what held it has been done away with
			}
		}
		if v.Receipt != nil {
			p.Receipt = ReceiptPB(v.Receipt)
		}
		r.Volumes = append(r.Volumes, p)
	}
	return r
}

// unixMs is 0 for the zero time.
func unixMs(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

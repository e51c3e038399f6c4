package transport

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/tandem-storage/tandem/replication"
	pb "github.com/tandem-storage/tandem/replication/replicationpb"
)

// Between the control exchange's Go types and its protobufs. A field that the
// other end must not have sent gives ErrProtocol.

// ids collects the first error of a series of conversions.
type ids struct{ err error }

func (c *ids) uuid(what string, b []byte) (u replication.UUID) {
	if len(b) != len(u) && c.err == nil {
		c.err = fmt.Errorf("%w: %s has %d bytes instead of %d", ErrProtocol, what, len(b), len(u))
	}
	copy(u[:], b)
	return u
}

func (c *ids) replicas(what string, bs [][]byte) []replication.ReplicaID {
	var rs []replication.ReplicaID
	for _, b := range bs {
		rs = append(rs, replication.ReplicaID(c.uuid(what, b)))
	}
	return rs
}

func (c *ids) status(s uint32) replication.Status {
	if s > 0xffff && c.err == nil {
		c.err = fmt.Errorf("%w: status %d", ErrProtocol, s)
	}
	return replication.Status(s)
}

func replicasToPB(rs []replication.ReplicaID) [][]byte {
	var bs [][]byte
	for _, r := range rs {
		bs = append(bs, r[:])
	}
	return bs
}

func sealToPB(r replication.SealRequest) *pb.SealRequest {
	return &pb.SealRequest{
		Volume: r.Volume[:], Replica: r.Replica[:],
		Term: uint64(r.Term), Epoch: uint64(r.Epoch), Gen: r.Gen,
		Incarnation: r.Incarnation[:], Attach: r.AttachID[:], Ended: uint64(r.Ended),
		Former: uuidsToPB(r.Former), Lineage: lineageToPB(r.Lineage),
	}
}

func uuidsToPB(us []replication.UUID) [][]byte {
	var bs [][]byte
	for _, u := range us {
		bs = append(bs, u[:])
	}
	return bs
}

func lineageToPB(as []replication.Ancestor) []*pb.Ancestor {
	var out []*pb.Ancestor
	for _, a := range as {
		out = append(out, &pb.Ancestor{Epoch: uint64(a.Epoch), Gen: a.Gen})
	}
	return out
}

func sealFromPB(r *pb.SealRequest) (replication.SealRequest, error) {
	var c ids
	q := replication.SealRequest{
		Volume:      replication.VolumeID(c.uuid("volume", r.GetVolume())),
		Replica:     replication.ReplicaID(c.uuid("replica", r.GetReplica())),
		Term:        replication.Term(r.GetTerm()),
		Epoch:       replication.Epoch(r.GetEpoch()),
		Gen:         r.GetGen(),
		Incarnation: c.uuid("incarnation", r.GetIncarnation()),
		AttachID:    replication.AttachID(c.uuid("attach", r.GetAttach())),
		Ended:       replication.Term(r.GetEnded()),
	}
	for _, b := range r.GetFormer() {
		q.Former = append(q.Former, c.uuid("former", b))
	}
	for _, a := range r.GetLineage() {
		q.Lineage = append(q.Lineage, replication.Ancestor{Epoch: replication.Epoch(a.GetEpoch()), Gen: a.GetGen()})
	}
	return q, c.err
}

func sealResultToPB(r replication.SealResult) *pb.SealResponse {
	return &pb.SealResponse{
		Status: uint32(r.Status), Term: uint64(r.Term), Epoch: uint64(r.Epoch), Gen: r.Gen,
		State: string(r.State), Boot: r.Boot[:], Instance: r.Instance[:],
		Lossy: r.Lossy, LogLost: r.LogLost, Active: r.Active, Crowded: r.Crowded,
		AppliedTerm: uint64(r.Applied.Term), AppliedSeq: uint64(r.Applied.Seq),
	}
}

func sealResultFromPB(r *pb.SealResponse) (replication.SealResult, error) {
	var c ids
	return replication.SealResult{
		Status:   c.status(r.GetStatus()),
		Term:     replication.Term(r.GetTerm()),
		Epoch:    replication.Epoch(r.GetEpoch()),
		Gen:      r.GetGen(),
		State:    replication.MemberState(r.GetState()),
		Boot:     replication.BootID(c.uuid("boot", r.GetBoot())),
		Instance: c.uuid("instance", r.GetInstance()),
		Lossy:    r.GetLossy(),
		LogLost:  r.GetLogLost(),
		Crowded:  r.GetCrowded(),
		Active:   r.GetActive(),
		Applied:  replication.Position{Term: replication.Term(r.GetAppliedTerm()), Seq: replication.Seq(r.GetAppliedSeq())},
	}, c.err
}

func prepareToPB(r replication.PrepareRequest) *pb.PrepareRequest {
	return &pb.PrepareRequest{
		Volume: r.Volume[:], Replica: r.Replica[:], Term: uint64(r.Term),
		Missing: replicasToPB(r.Missing), MarkAll: replicasToPB(r.MarkAll), Size: r.Size,
	}
}

func prepareFromPB(r *pb.PrepareRequest) (replication.PrepareRequest, error) {
	var c ids
	return replication.PrepareRequest{
		Volume:  replication.VolumeID(c.uuid("volume", r.GetVolume())),
		Replica: replication.ReplicaID(c.uuid("replica", r.GetReplica())),
		Term:    replication.Term(r.GetTerm()),
		Missing: c.replicas("missing", r.GetMissing()),
		MarkAll: c.replicas("mark_all", r.GetMarkAll()),
		Size:    r.GetSize(),
	}, c.err
}

func commitToPB(r replication.CommitRequest) (*pb.CommitRequest, error) {
	config, err := json.Marshal(r.Config)
	if err != nil {
		return nil, fmt.Errorf("transport: encode configuration: %w", err)
	}
	return &pb.CommitRequest{
		Volume: r.Volume[:], Replica: r.Replica[:], Term: uint64(r.Term),
		Incarnation: r.Incarnation[:], Config: config, Boot: r.Boot[:], Settled: r.Settled,
	}, nil
}

func commitFromPB(r *pb.CommitRequest) (replication.CommitRequest, error) {
	var c ids
	out := replication.CommitRequest{
		Volume:      replication.VolumeID(c.uuid("volume", r.GetVolume())),
		Replica:     replication.ReplicaID(c.uuid("replica", r.GetReplica())),
		Term:        replication.Term(r.GetTerm()),
		Incarnation: c.uuid("incarnation", r.GetIncarnation()),
		Boot:        replication.BootID(c.uuid("boot", r.GetBoot())),
		Settled:     r.GetSettled(),
	}
	if c.err != nil {
		return out, c.err
	}
	// "null" would leave it nil.
	if err := json.Unmarshal(r.GetConfig(), &out.Config); err != nil {
		return out, fmt.Errorf("%w: configuration: %w", ErrProtocol, err)
	}
	if out.Config == nil {
		return out, fmt.Errorf("%w: no configuration", ErrProtocol)
	}
	return out, nil
}

func dirtyToPB(r replication.DirtyRequest) *pb.DirtyRequest {
	return &pb.DirtyRequest{Volume: r.Volume[:], Replica: r.Replica[:], Term: uint64(r.Term), Peer: r.Peer[:]}
}

func dirtyFromPB(r *pb.DirtyRequest) (replication.DirtyRequest, error) {
	var c ids
	return replication.DirtyRequest{
		Volume:  replication.VolumeID(c.uuid("volume", r.GetVolume())),
		Replica: replication.ReplicaID(c.uuid("replica", r.GetReplica())),
		Term:    replication.Term(r.GetTerm()),
		Peer:    replication.ReplicaID(c.uuid("peer", r.GetPeer())),
	}, c.err
}

func turnToPB(r replication.TurnRequest) *pb.TurnRequest {
	return &pb.TurnRequest{Volume: r.Volume[:], Replica: r.Replica[:], Runs: r.Runs, Ended: r.Ended}
}

func turnFromPB(r *pb.TurnRequest) (replication.TurnRequest, error) {
	var c ids
	return replication.TurnRequest{
		Volume:  replication.VolumeID(c.uuid("volume", r.GetVolume())),
		Replica: replication.ReplicaID(c.uuid("replica", r.GetReplica())),
		Runs:    r.GetRuns(),
		Ended:   r.GetEnded(),
	}, c.err
}

func turnResultToPB(r replication.TurnResult) *pb.TurnResponse {
	return &pb.TurnResponse{Status: uint32(r.Status), Granted: r.Granted, Rate: uint64(max(r.Rate, 0)), AgainMs: uint32(min(max(r.Again, 0), time.Hour).Milliseconds())}
}

func turnResultFromPB(r *pb.TurnResponse) (replication.TurnResult, error) {
	var c ids
	return replication.TurnResult{
		Status: c.status(r.GetStatus()), Granted: r.GetGranted(),
		Rate: int64(min(r.GetRate(), 1<<62)), Again: min(time.Duration(r.GetAgainMs())*time.Millisecond, time.Hour),
	}, c.err
}

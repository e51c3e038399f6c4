package volume

import (
	"context"
	"time"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// GetExposure implements Volumes.
func (s *Server) GetExposure(ctx context.Context, r *volumepb.GetExposureRequest) (*volumepb.GetExposureResponse, error) {
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	x, err := s.c.configs.Exposure(ctx, e.ID)
	if err != nil {
		return nil, err
	}
	return &volumepb.GetExposureResponse{VolumeId: e.ID.String(), Name: e.Name, Exposure: exposurePB(x, s.progress(ctx, e), time.Now())}, nil
}

// exposure is the summary for InspectVolume, nil if it cannot be read.
func (s *Server) exposure(ctx context.Context, e *Entry) *volumepb.Exposure {
	if e.Config == nil {
		return nil
	}
	x, err := s.c.configs.Exposure(ctx, e.ID)
	if err != nil {
		return nil
	}
	pb := exposurePB(x, s.progress(ctx, e), time.Now())
	pb.Past = pb.Past[max(0, len(pb.Past)-1):]
	return pb
}

// progress is what this node knows of the resyncs of the volume.
func (s *Server) progress(ctx context.Context, e *Entry) func(MissingReplica) int64 {
	live := s.o.Runtime.Status(ctx, e.ID)
	return func(m MissingReplica) int64 { return live.Replicas[m.Replica].Total }
}

// exposurePB makes x a message. total tells how much the resync of a missing replica goes through, 0 if none is under way here.
func exposurePB(x *Exposure, total func(MissingReplica) int64, now time.Time) *volumepb.Exposure {
	sum := x.Total(now)
	pb := &volumepb.Exposure{
		EarlierCount: uint32(x.Before.Count), EarlierMs: x.Before.Duration.Milliseconds(), EarlierResyncedBytes: uint64(x.Before.Resynced),
		TotalCount: uint32(sum.Count), TotalMs: sum.Duration.Milliseconds(), TotalResyncedBytes: uint64(sum.Resynced),
	}
	for i := range x.Past {
		pb.Past = append(pb.Past, intervalPB(&x.Past[i], now))
	}
	if x.Open != nil {
		pb.Open = intervalPB(x.Open, now)
		for _, m := range x.Open.Missing {
			pb.Open.ResyncedBytes += uint64(total(m))
		}
	}
	return pb
}

func intervalPB(i *Interval, now time.Time) *volumepb.ExposedInterval {
	pb := &volumepb.ExposedInterval{
		LastedMs: i.Duration(now).Milliseconds(), FromEpoch: uint64(i.FromEpoch), ToEpoch: uint64(i.ToEpoch), Cause: i.Cause, End: i.End,
		WithoutDomains: i.Without, InSync: uint32(i.InSync), ResyncedBytes: uint64(i.Resynced),
	}
	if !i.From.IsZero() {
		pb.FromUnixMs = i.From.UnixMilli()
	}
	if !i.To.IsZero() {
		pb.ToUnixMs = i.To.UnixMilli()
	}
	for _, m := range i.Missing {
		pb.Missing = append(pb.Missing, &volumepb.MissingReplica{ReplicaId: m.Replica.String(), Node: string(m.Node), Domain: string(m.Domain), Reason: m.Reason})
	}
	return pb
}

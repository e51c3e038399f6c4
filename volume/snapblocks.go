package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// mostRanges are in one message: some 50 KB.
const mostRanges = 4096

// BlocksQuery is what a holder is asked: in what a snapshot differs from another one, base, of the same volume, or is not empty if that is zero.
type BlocksQuery struct {
	Volume         replication.VolumeID
	Replica        replication.ReplicaID
	Snapshot, Base replication.SnapshotID
	Offset         int64 // from there on, bytes
	Most           int   // ranges at once, 1 to 4096
}

// LocalBlocks finds blocks of snapshots that replicas of this node hold.
type LocalBlocks interface {
	// ChangedBlocks calls f for the ranges, ascending, until it returns false. ErrSnapshotNotHeld: they are not held by that replica, here.
	ChangedBlocks(q BlocksQuery, f func(off, length int64) bool) error
}

// BlockHolders reaches the nodes that hold snapshots.
type BlockHolders interface {
	// ListHeld has f called with the ranges that a replica on another node finds, until it returns an error, which is returned.
	ListHeld(ctx context.Context, n replication.NodeID, q BlocksQuery, f func([]*volumepb.BlockRange) error) error
}

// SnapshotBlocksServer implements the gRPC services SnapshotBlocks and SnapshotHolders.
type SnapshotBlocksServer struct {
	volumepb.UnimplementedSnapshotBlocksServer
	c      *Catalogue
	node   replication.NodeID
	local  LocalBlocks
	others BlockHolders
}

// SnapshotHoldersServer implements the gRPC service SnapshotHolders, for the other nodes.
type SnapshotHoldersServer struct {
	volumepb.UnimplementedSnapshotHoldersServer
	find func() (LocalBlocks, error)
}

var (
	_ volumepb.SnapshotBlocksServer  = (*SnapshotBlocksServer)(nil)
	_ volumepb.SnapshotHoldersServer = (*SnapshotHoldersServer)(nil)
)

// NewSnapshotBlocksServer returns the service of this node.
func NewSnapshotBlocksServer(c *Catalogue, node replication.NodeID, local LocalBlocks, others BlockHolders) *SnapshotBlocksServer {
	return &SnapshotBlocksServer{c: c, node: node, local: local, others: others}
}

// NewSnapshotHoldersServer returns the service of what find returns.
func NewSnapshotHoldersServer(find func() (LocalBlocks, error)) *SnapshotHoldersServer {
	return &SnapshotHoldersServer{find: find}
}

// ListBlocks implements SnapshotBlocks. When a holder fails the next one goes on where that ended: what one of them calls the same is the same on all.
func (s *SnapshotBlocksServer) ListBlocks(r *volumepb.ListBlocksRequest, stream grpc.ServerStreamingServer[volumepb.ListBlocksResponse]) error {
	ctx := stream.Context()
	rec, q, err := s.query(ctx, r)
	if err != nil {
		return fmt.Errorf("blocks of snapshot %s: %w", r.Snapshot, err)
	}
	told := false
	var sent error // who asked has gone
	send := func(ranges []*volumepb.BlockRange) error {
		if len(ranges) > 0 {
			last := ranges[len(ranges)-1]
			q.Offset = int64(last.Offset + last.Length)
		}
		told = true
		sent = stream.Send(&volumepb.ListBlocksResponse{SizeBytes: uint64(rec.Size), Ranges: ranges})
		return sent
	}
	var failed []string
	for _, h := range s.holders(rec) {
		q.Replica = h.Replica
		if h.Node == s.node {
			err = listBlocks(ctx, s.local, *q, send)
		} else {
			err = s.others.ListHeld(ctx, h.Node, *q, send)
		}
		switch {
		case err == nil && !told:
			return send(nil)
		case err == nil || sent != nil:
			return err
		}
		failed = append(failed, fmt.Sprintf("node %s: %v", h.Node, err))
	}
	return fmt.Errorf("blocks of snapshot %s: %w (%s)", rec.Name, ErrHoldersSilent, strings.Join(failed, "; "))
}

// query reads a request. Where it is to be asked is not in it yet.
func (s *SnapshotBlocksServer) query(ctx context.Context, r *volumepb.ListBlocksRequest) (*SnapshotRecord, *BlocksQuery, error) {
	rec, err := s.ready(ctx, r.Snapshot)
	if err != nil {
		return nil, nil, err
	}
	q := &BlocksQuery{Volume: rec.Volume, Snapshot: rec.ID, Offset: r.Offset, Most: most(r.Most)}
	if r.Offset < 0 || r.Offset > rec.Size {
		return nil, nil, fmt.Errorf("%w: offset %d is not within its %d bytes", ErrInvalid, r.Offset, rec.Size)
	}
	if r.Base != "" {
		base, err := s.ready(ctx, r.Base)
		if err != nil {
			return nil, nil, err
		}
		if base.Volume != rec.Volume {
			return nil, nil, fmt.Errorf("%w: %s is a snapshot of volume %s, and %s one of volume %s: only those of one volume are compared",
				ErrInvalid, base.Name, base.VolumeName, rec.Name, rec.VolumeName)
		}
		q.Base = base.ID
	}
	return rec, q, nil
}

func most(n uint32) int {
	if n == 0 || n > mostRanges {
		return mostRanges
	}
	return int(n)
}

// ready reads a snapshot that there is.
func (s *SnapshotBlocksServer) ready(ctx context.Context, ref string) (*SnapshotRecord, error) {
	rec, err := s.c.Snapshot(ctx, ref)
	if err == nil && rec.State != Ready {
		err = fmt.Errorf("%w: %s is %s", ErrSnapshotNotFound, rec.Name, strings.ToLower(string(rec.State)))
	}
	return rec, err
}

// holders are those of a snapshot, in the order in which they are asked: this node, then those that are online. One that is not may be again.
func (s *SnapshotBlocksServer) holders(rec *SnapshotRecord) []Placement {
	view := s.c.cluster.View()
	far := func(p Placement) int {
		n, _ := view.Node(string(p.Node))
		switch {
		case p.Node == s.node:
			return 0
		case n.Online:
			return 1
		default:
			return 2
		}
	}
	hs := slices.Clone(rec.Holders)
	slices.SortStableFunc(hs, func(a, b Placement) int { return far(a) - far(b) })
	return hs
}

// ListHeldBlocks implements SnapshotHolders.
func (s *SnapshotHoldersServer) ListHeldBlocks(r *volumepb.ListHeldBlocksRequest, stream grpc.ServerStreamingServer[volumepb.ListBlocksResponse]) error {
	q := BlocksQuery{Offset: r.Offset, Most: most(r.Most)}
	var ids [4]replication.UUID
	for i, b := range [][]byte{r.VolumeId, r.ReplicaId, r.SnapshotId, r.BaseId} {
		if i == 3 && len(b) == 0 {
			break // no base
		}
		var err error
		if ids[i], err = parseIdentifier(b); err != nil {
			return err
		}
	}
	q.Volume, q.Replica = replication.VolumeID(ids[0]), replication.ReplicaID(ids[1])
	q.Snapshot, q.Base = replication.SnapshotID(ids[2]), replication.SnapshotID(ids[3])
	local, err := s.find()
	if err != nil {
		return err
	}
	return listBlocks(stream.Context(), local, q, func(ranges []*volumepb.BlockRange) error {
		return stream.Send(&volumepb.ListBlocksResponse{Ranges: ranges})
	})
}

// ListHeldOn asks another node for ListHeldBlocks, and calls f with what it finds until f returns an error.
func ListHeldOn(ctx context.Context, c volumepb.SnapshotHoldersClient, q BlocksQuery, f func([]*volumepb.BlockRange) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &volumepb.ListHeldBlocksRequest{VolumeId: q.Volume[:], ReplicaId: q.Replica[:], SnapshotId: q.Snapshot[:], Offset: q.Offset, Most: uint32(q.Most)}
	if q.Base != (replication.SnapshotID{}) {
		r.BaseId = q.Base[:]
	}
	stream, err := c.ListHeldBlocks(ctx, r)
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(m.Ranges); err != nil {
			return err
		}
	}
}

// listBlocks has f called with what local finds, q.Most at once, and ranges that touch as one, until f returns an error or ctx ends.
func listBlocks(ctx context.Context, local LocalBlocks, q BlocksQuery, f func([]*volumepb.BlockRange) error) error {
	var ranges []*volumepb.BlockRange
	var stop error
	err := local.ChangedBlocks(q, func(off, length int64) bool {
		if stop = ctx.Err(); stop != nil {
			return false
		}
		if i := len(ranges) - 1; i >= 0 && int64(ranges[i].Offset+ranges[i].Length) == off {
			ranges[i].Length += uint64(length)
			return true
		}
		if len(ranges) == q.Most {
			if stop = f(ranges); stop != nil {
				return false
			}
			ranges = nil
		}
		ranges = append(ranges, &volumepb.BlockRange{Offset: uint64(off), Length: uint64(length)})
		return true
	})
	if err == nil {
		err = stop
	}
	if err == nil && len(ranges) > 0 {
		err = f(ranges)
	}
	return err
}

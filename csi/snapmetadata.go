package csi

import (
	"context"
	"errors"
	"io"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// GetMetadataAllocated implements SnapshotMetadata: the ranges of a snapshot that have anything.
func (d *Driver) GetMetadataAllocated(r *spec.GetMetadataAllocatedRequest, stream spec.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if r.GetSnapshotId() == "" {
		return invalid("snapshot_id is missing")
	}
	return d.blocks(stream.Context(), r.GetSnapshotId(), "", r.GetStartingOffset(), r.GetMaxResults(), func(size int64, bs []*spec.BlockMetadata) error {
		return stream.Send(&spec.GetMetadataAllocatedResponse{
			BlockMetadataType: spec.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: bs,
		})
	})
}

// GetMetadataDelta implements SnapshotMetadata: the ranges in which a snapshot may have other content than another one of its volume.
func (d *Driver) GetMetadataDelta(r *spec.GetMetadataDeltaRequest, stream spec.SnapshotMetadata_GetMetadataDeltaServer) error {
	switch {
	case r.GetBaseSnapshotId() == "":
		return invalid("base_snapshot_id is missing")
	case r.GetTargetSnapshotId() == "":
		return invalid("target_snapshot_id is missing")
	}
	if _, err := d.snapshot(stream.Context(), r.GetBaseSnapshotId()); err != nil {
		return err
	}
	return d.blocks(stream.Context(), r.GetTargetSnapshotId(), r.GetBaseSnapshotId(), r.GetStartingOffset(), r.GetMaxResults(), func(size int64, bs []*spec.BlockMetadata) error {
		return stream.Send(&spec.GetMetadataDeltaResponse{
			BlockMetadataType: spec.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: bs,
		})
	})
}

// blocks asks for the ranges and has them sent, most at once if that is not zero.
func (d *Driver) blocks(ctx context.Context, id, base string, off int64, most int32, send func(size int64, bs []*spec.BlockMetadata) error) error {
	if off < 0 || most < 0 {
		return invalid("starting_offset or max_results is negative")
	}
	s, err := d.snapshot(ctx, id)
	if err != nil {
		return err
	}
	if size := int64(s.GetSizeBytes()); off > size {
		return status.Errorf(codes.OutOfRange, "starting_offset: the snapshot has %d bytes", size)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := d.o.Backend.ListBlocks(ctx, &volumepb.ListBlocksRequest{Snapshot: id, Base: base, Offset: off, Most: uint32(most)})
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
		var bs []*spec.BlockMetadata
		for _, r := range m.GetRanges() {
			bs = append(bs, &spec.BlockMetadata{ByteOffset: int64(r.GetOffset()), SizeBytes: int64(r.GetLength())})
		}
		if err := send(int64(m.GetSizeBytes()), bs); err != nil {
			return err
		}
	}
}

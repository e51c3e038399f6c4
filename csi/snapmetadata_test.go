package csi

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// blocksOf reads a stream to its end: the offsets, and the capacity, which is the same in all.
func blocksOf[M interface {
	GetVolumeCapacityBytes() int64
	GetBlockMetadataType() spec.BlockMetadataType
	GetBlockMetadata() []*spec.BlockMetadata
}](t *testing.T, stream interface{ Recv() (M, error) }, err error) ([]int64, error) {
	t.Helper()
	var offs []int64
	for err == nil {
		var m M
		if m, err = stream.Recv(); err != nil {
			break
		}
		if m.GetVolumeCapacityBytes() != 1<<30 || m.GetBlockMetadataType() != spec.BlockMetadataType_VARIABLE_LENGTH {
			t.Errorf("%v", m)
		}
		for _, b := range m.GetBlockMetadata() {
			offs = append(offs, b.GetByteOffset())
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return offs, err
}

// TestSnapshotMetadata tells what a snapshot has and what differs, over a socket as the sidecar asks it.
func TestSnapshotMetadata(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "csi.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := h.Server()
	go func() { _ = s.Serve(l) }() // ends with Stop
	defer s.Stop()
	cc, err := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	c := spec.NewSnapshotMetadataClient(cc)
	take := func(name, volume string) string {
		resp, err := h.CreateSnapshot(ctx, &spec.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetSnapshot().GetSnapshotId()
	}
	vc := mounted("xfs", writer)
	v := h.published(t, "v", vc)
	v.SizeBytes = 1 << 30
	one, two := take("one", v.Id), take("two", v.Id)
	other := take("other", h.published(t, "w", vc).Id)
	none := "99999999-0000-4000-8000-000000000008"

	for _, tt := range []struct {
		base, id string
		from     int64
		want     []int64
		code     codes.Code
	}{
		{"", one, 0, []int64{0, 1 << 18, 1 << 19, 3 << 18}, codes.OK},
		{"", one, 1 << 19, []int64{1 << 19, 3 << 18}, codes.OK},
		{"", one, 1 << 30, nil, codes.OK},
		{"", one, 1<<30 + 1, nil, codes.OutOfRange},
		{"", one, -1, nil, codes.InvalidArgument},
		{"", none, 0, nil, codes.NotFound},
		{"", "x", 0, nil, codes.NotFound},
		{"", "", 0, nil, codes.InvalidArgument},
		{"", strings.Repeat("x", 2000), 0, nil, codes.InvalidArgument},
		{one, two, 0, []int64{1 << 18, 1 << 19, 3 << 18}, codes.OK},
		{one, other, 0, nil, codes.InvalidArgument},
		{none, one, 0, nil, codes.NotFound},
		{one, none, 0, nil, codes.NotFound},
		{one, "", 0, nil, codes.InvalidArgument},
	} {
		var got []int64
		if tt.base == "" {
			stream, err2 := c.GetMetadataAllocated(ctx, &spec.GetMetadataAllocatedRequest{SnapshotId: tt.id, StartingOffset: tt.from})
			got, err = blocksOf(t, stream, err2)
		} else {
			stream, err2 := c.GetMetadataDelta(ctx, &spec.GetMetadataDeltaRequest{BaseSnapshotId: tt.base, TargetSnapshotId: tt.id, StartingOffset: tt.from})
			got, err = blocksOf(t, stream, err2)
		}
		if status.Code(err) != tt.code || err == nil && !slices.Equal(got, tt.want) {
			t.Errorf("%.40s from %s at %d: %v, %v", tt.id, tt.base, tt.from, got, err)
		}
	}
	for _, r := range []func(context.Context) error{
		func(ctx context.Context) error {
			stream, err := c.GetMetadataDelta(ctx, &spec.GetMetadataDeltaRequest{TargetSnapshotId: one})
			_, err = blocksOf(t, stream, err)
			return err
		},
		func(ctx context.Context) error {
			stream, err := c.GetMetadataAllocated(ctx, &spec.GetMetadataAllocatedRequest{SnapshotId: one, MaxResults: -1})
			_, err = blocksOf(t, stream, err)
			return err
		},
	} {
		if err := r(ctx); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
	}
	h.c.cut = status.Error(codes.Unavailable, "the last holder has gone")
	stream, err := c.GetMetadataAllocated(ctx, &spec.GetMetadataAllocatedRequest{SnapshotId: one})
	got, err := blocksOf(t, stream, err)
	if status.Code(err) != codes.Unavailable || len(got) != 4 {
		t.Errorf("a stream that is cut: %v, %v", got, err)
	}
}

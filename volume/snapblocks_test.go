package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// fakeHolders are nodes whose replicas hold snapshots with the same ranges.
type fakeHolders struct {
	t      *testing.T
	ranges [][2]int64
	silent map[replication.NodeID]int // who fails after so many messages
	asked  []string
}

func (h *fakeHolders) ChangedBlocks(q BlocksQuery, f func(off, length int64) bool) error {
	h.asked = append(h.asked, fmt.Sprintf("here from %d", q.Offset))
	for _, r := range h.ranges {
		if cut := q.Offset - r[0]; cut > 0 {
			r[0], r[1] = r[0]+cut, r[1]-cut
		}
		if r[1] > 0 && !f(r[0], r[1]) {
			break
		}
	}
	return nil
}

func (h *fakeHolders) ListHeld(ctx context.Context, n replication.NodeID, q BlocksQuery, f func([]*volumepb.BlockRange) error) error {
	asked := len(h.asked)
	left, fails := h.silent[n]
	err := listBlocks(ctx, h, q, func(ranges []*volumepb.BlockRange) error {
		if left--; fails && left < 0 {
			return errors.New("cut off")
		}
		return f(ranges)
	})
	h.asked[asked] = fmt.Sprintf("%s from %d", n, q.Offset)
	return err
}

// sentBlocks takes what is sent.
type sentBlocks struct {
	grpc.ServerStreamingServer[volumepb.ListBlocksResponse]
	ctx  context.Context
	sent []*volumepb.ListBlocksResponse
	gone error
}

func (s *sentBlocks) Context() context.Context { return s.ctx }

func (s *sentBlocks) Send(m *volumepb.ListBlocksResponse) error {
	if s.gone == nil {
		s.sent = append(s.sent, m)
	}
	return s.gone
}

// TestListBlocks: ranges that touch are one, messages are bounded, and where a holder fails the next one goes on.
func TestListBlocks(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.catalogue(w.store)
	take := func(name string, v replication.VolumeID) *SnapshotRecord {
		s, err := c.CreateSnapshot(t.Context(), &fakeTaker{w: w}, name, v, false)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	e := w.create(Request{Name: "v", Size: gib})
	take("one", e.ID)
	take("two", e.ID)
	take("other", w.create(Request{Name: "w", Size: gib}).ID)
	ranges := [][2]int64{{0, 4096}, {4096, 8192}, {1 << 20, 4096}, {2 << 20, 4096}, {2<<20 + 4096, 4096}}
	const all = "0+12288 1048576+4096 2097152+8192"

	for _, tt := range []struct {
		name   string
		node   string
		r      *volumepb.ListBlocksRequest
		silent map[replication.NodeID]int
		want   string // ranges, messages apart by |
		asked  string
		err    error
	}{
		{"here", "n-a", &volumepb.ListBlocksRequest{Snapshot: "one"}, nil, all, "here from 0", nil},
		{"bounded", "n-a", &volumepb.ListBlocksRequest{Snapshot: "one", Most: 2}, nil, "0+12288 1048576+4096 | 2097152+8192", "here from 0", nil},
		{"from the middle", "n-a", &volumepb.ListBlocksRequest{Snapshot: "two", Base: "one", Offset: 8192}, nil, "8192+4096 1048576+4096 2097152+8192", "here from 8192", nil},
		{"from the end", "n-a", &volumepb.ListBlocksRequest{Snapshot: "two", Offset: gib}, nil, "", "here from 1073741824", nil},
		{"of another node", "n-c", &volumepb.ListBlocksRequest{Snapshot: "one"}, nil, all, "n-a from 0", nil},
		{"one fails at once", "n-c", &volumepb.ListBlocksRequest{Snapshot: "one"}, map[replication.NodeID]int{"n-a": 0}, all, "n-a from 0, n-b from 0", nil},
		{"one fails in between", "n-c", &volumepb.ListBlocksRequest{Snapshot: "one", Most: 1}, map[replication.NodeID]int{"n-a": 2},
			"0+12288 | 1048576+4096 | 2097152+8192", "n-a from 0, n-b from 1052672", nil},
		{"all fail", "n-c", &volumepb.ListBlocksRequest{Snapshot: "one", Most: 1}, map[replication.NodeID]int{"n-a": 1, "n-b": 1},
			"0+12288 | 1048576+4096", "n-a from 0, n-b from 12288", ErrHoldersSilent},
		{"no such snapshot", "n-a", &volumepb.ListBlocksRequest{Snapshot: "three"}, nil, "", "", ErrSnapshotNotFound},
		{"no such base", "n-a", &volumepb.ListBlocksRequest{Snapshot: "one", Base: "three"}, nil, "", "", ErrSnapshotNotFound},
		{"base of another volume", "n-a", &volumepb.ListBlocksRequest{Snapshot: "one", Base: "other"}, nil, "", "", ErrInvalid},
		{"behind the end", "n-a", &volumepb.ListBlocksRequest{Snapshot: "one", Offset: gib + 1}, nil, "", "", ErrInvalid},
		{"before the beginning", "n-a", &volumepb.ListBlocksRequest{Snapshot: "one", Offset: -1}, nil, "", "", ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &fakeHolders{t: t, ranges: ranges, silent: tt.silent}
			out := &sentBlocks{ctx: t.Context()}
			err := NewSnapshotBlocksServer(c, replication.NodeID(tt.node), h, h).ListBlocks(tt.r, out)
			if tt.err == nil && err != nil || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("%v, want %v", err, tt.err)
			}
			var got []string
			for _, m := range out.sent {
				var rs []string
				for _, r := range m.Ranges {
					rs = append(rs, fmt.Sprintf("%d+%d", r.Offset, r.Length))
				}
				got = append(got, strings.Join(rs, " "))
				if int64(m.SizeBytes) != gib {
					t.Errorf("the snapshot has %d bytes", m.SizeBytes)
				}
			}
			if strings.Join(got, " | ") != tt.want || strings.Join(h.asked, ", ") != tt.asked {
				t.Errorf("%q of %q, want %q of %q", got, h.asked, tt.want, tt.asked)
			}
			if err == nil && len(out.sent) == 0 {
				t.Error("the size is not told")
			}
		})
	}

	// Who asked has gone: nobody else is asked.
	h := &fakeHolders{t: t, ranges: ranges}
	gone := errors.New("gone")
	if err := NewSnapshotBlocksServer(c, "n-a", h, h).ListBlocks(&volumepb.ListBlocksRequest{Snapshot: "one"}, &sentBlocks{ctx: t.Context(), gone: gone}); !errors.Is(err, gone) || len(h.asked) != 1 {
		t.Errorf("%v, asked %q", err, h.asked)
	}
}

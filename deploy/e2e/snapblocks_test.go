package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestSnapshotBlocks makes a backup as a tool does that asks what snapshots have: the first one whole, the second by what differs. It is asked for on nodes that
// hold the snapshots and that do not, by tandemctl and over CSI, and goes on when a holder is lost.
func TestSnapshotBlocks(t *testing.T) {
	needDisks(t, "mkfs.xfs")
	sockets := map[string]string{}
	c := own(t, func(s *lab.Spec) {
		s.Adjust = func(node string, cfg map[string]any) {
			if cfg["role"] == "node" {
				sockets[node] = filepath.Join(cfg["runDir"].(string), "csi.sock")
				cfg["csi"] = map[string]any{"socket": sockets[node]}
			}
		}
	}, func(u *lab.Undo, c *cluster) { disks(t, u, c, "mkfs.xfs", "-q", "-K") })
	const size, block = 64 << 20, 64 << 10
	v := c.create(t, "data", "64Mi")
	dev := c.attach(t, v.home, v.name, "fuseloop")
	write := func(fill byte, offs ...int64) {
		t.Helper()
		f, err := os.OpenFile(dev, os.O_WRONLY|os.O_SYNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, off := range offs {
			if _, err := f.WriteAt(bytes.Repeat([]byte{fill}, block), off); err != nil {
				t.Fatal(err)
			}
		}
	}
	type rng struct{ off, length int64 }
	listed := func(node string, args ...string) []rng {
		t.Helper()
		var l struct {
			Size   int64 `json:"size_bytes,string"`
			Ranges []struct {
				Offset int64 `json:"offset,string"`
				Length int64 `json:"length,string"`
			} `json:"ranges"`
		}
		out := c.ctl(t, node, append([]string{"volume", "snapshot", "blocks", "-o", "json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &l); err != nil || l.Size != size {
			t.Fatalf("%q: %v", out, err)
		}
		var rs []rng
		for _, r := range l.Ranges {
			rs = append(rs, rng{r.Offset, r.Length})
		}
		return rs
	}
	overCSI := func(node, base, id string) []rng {
		t.Helper()
		cc, err := grpc.NewClient("unix://"+sockets[node], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		var rs []rng
		stream, err := spec.NewSnapshotMetadataClient(cc).GetMetadataDelta(t.Context(), &spec.GetMetadataDeltaRequest{BaseSnapshotId: base, TargetSnapshotId: id, MaxResults: 1})
		for err == nil {
			var m *spec.GetMetadataDeltaResponse
			if m, err = stream.Recv(); err == nil {
				for _, b := range m.GetBlockMetadata() {
					rs = append(rs, rng{b.GetByteOffset(), b.GetSizeBytes()})
				}
			}
		}
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return rs
	}
	same := func(what string, got, want []rng) {
		t.Helper()
		if len(got) != len(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
			return
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
	}
	take := func(name string) string {
		t.Helper()
		var r struct {
			Snapshot snapshotView `json:"snapshot"`
		}
		out := c.ctl(t, v.spare, "volume", "snapshot", "create", v.name, name, "-o", "json", "--timeout", "30s")
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("volume snapshot create printed %q: %v", out, err)
		}
		return r.Snapshot.ID
	}
	write(1, 0, block, 16<<20, size-block)
	monday := take("monday")
	write(2, block, 32<<20)
	tuesday := take("tuesday")
	write(3, 0, 48<<20)

	whole := []rng{{0, 2 * block}, {16 << 20, block}, {size - block, block}}
	delta := []rng{{block, block}, {32 << 20, block}}
	for _, node := range []string{v.home, v.away, v.spare, v.spare2} {
		same("what monday has, by "+node, listed(node, "monday"), whole)
		same("what has changed, by "+node, listed(node, "tuesday", "--base", "monday"), delta)
		same("what has changed, by "+node+" over CSI", overCSI(node, monday, tuesday), delta)
	}
	c.refused(t, v.home, 3, []string{"wednesday"}, "volume", "snapshot", "blocks", "wednesday")

	// The backup: all of monday, and what differs of tuesday on top.
	image := make([]byte, size)
	for _, s := range []struct {
		name   string
		ranges []rng
	}{{"monday", whole}, {"tuesday", delta}} {
		c.ctl(t, v.spare, "volume", "snapshot", "restore", s.name, "of-"+s.name)
		from, err := os.Open(c.attach(t, v.home, "of-"+s.name, "fuseloop"))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range s.ranges {
			if _, err := from.ReadAt(image[r.off:r.off+r.length], r.off); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, size)
		if _, err := from.ReadAt(got, 0); err != nil || !bytes.Equal(got, image) {
			t.Errorf("the backup is not what %s has, %v", s.name, err)
		}
		if err := from.Close(); err != nil {
			t.Fatal(err)
		}
		c.detach(t, v.home, "of-"+s.name)
	}

	if err := c.Node(v.away).Kill(); err != nil {
		t.Fatal(err)
	}
	same("what has changed, without "+v.away, listed(v.spare, "tuesday", "--base", "monday"), delta)
	if err := c.StartNode(c.Node(v.away)); err != nil {
		t.Fatal(err)
	}
	c.online(t, v.away)
	until(t, "the one that was lost tells it, too", time.Minute, func() (bool, error) {
		_, err := c.Ctl(t.Context(), c.Node(v.away), "volume", "snapshot", "blocks", "tuesday")
		return err == nil, err
	})
	c.detach(t, v.home, v.name)
}

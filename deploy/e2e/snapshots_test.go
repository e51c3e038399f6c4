package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// snapshotView is what `volume snapshot` tells of one.
type snapshotView struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	State   string `json:"state"`
	Holders []struct {
		Node string `json:"node"`
	} `json:"holders"`
}

func (s *snapshotView) nodes() (nodes []string) {
	for _, h := range s.Holders {
		nodes = append(nodes, h.Node)
	}
	return sorted(nodes...)
}

// snapshot takes a snapshot and returns a copy of the writer's ledger from before it: what that has is in it.
func (c *cluster) snapshot(t *testing.T, ask, volume, name string, w *writer) (*snapshotView, string) {
	t.Helper()
	data, err := os.ReadFile(w.ledger)
	if err != nil {
		t.Fatal(err)
	}
	ledger := filepath.Join(t.TempDir(), name+".ledger")
	if err := os.WriteFile(ledger, data, 0o600); err != nil {
		t.Fatal(err)
	}
	var r struct {
		Snapshot snapshotView `json:"snapshot"`
	}
	out := c.ctl(t, ask, "volume", "snapshot", "create", volume, name, "-o", "json", "--timeout", "30s")
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("volume snapshot create printed %q: %v", out, err)
	}
	return &r.Snapshot, ledger
}

// copied looks at a volume that was made from a snapshot: it has what the ledger has, and both replicas the same.
func (c *cluster) copied(t *testing.T, node, name, ledger string, w *writer) {
	t.Helper()
	uri := c.attach(t, node, name)
	w.compare(t, uri, ledger, "newer")
	c.detach(t, node, name)
	c.identical(t, name)
}

// TestSnapshots takes snapshots of a volume that is written to, in sync and with a replica lost, makes volumes of them and clones of it, and deletes all
// in another order than they came.
func TestSnapshots(t *testing.T) {
	needDisks(t, "mkfs.xfs")
	c := own(t, nil, func(u *lab.Undo, c *cluster) { disks(t, u, c, "mkfs.xfs", "-q", "-K") })
	v := c.create(t, "source", "64Mi")
	w := newWriter(t)
	w.start(t, c.attach(t, v.home, v.name))
	var ledgers []string
	take := func(ask, name string, nodes ...string) {
		t.Helper()
		s, l := c.snapshot(t, ask, v.name, name, w)
		if ledgers = append(ledgers, l); !slices.Equal(s.nodes(), nodes) || s.State != "SNAPSHOT_STATE_READY" {
			t.Errorf("%s is held on %v, %s", name, s.nodes(), s.State)
		}
		w.more(t, 100, 20*time.Second)
	}
	both := sorted(v.home, v.away)
	held := func(node string) []string {
		t.Helper()
		dirs, err := filepath.Glob(filepath.Join(c.Node(node).Pool(), "*", "*", "snap", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return dirs
	}
	chapters(t, chapter{"under load, asked anywhere", func(t *testing.T) {
		for i, ask := range []string{v.home, v.away, v.spare2} {
			take(ask, fmt.Sprintf("s%d", i), both...)
		}
		c.refused(t, v.home, 4, []string{"snapshots"}, "volume", "delete", v.name, "--yes")
	}}, chapter{"restored", func(t *testing.T) {
		for _, i := range []int{0, 2} {
			name := fmt.Sprintf("old%d", i)
			c.ctl(t, v.spare, "volume", "snapshot", "restore", fmt.Sprintf("s%d", i), name, "--timeout", "30s")
			c.copied(t, v.away, name, ledgers[i], w)
		}
		w.more(t, 100, 20*time.Second)
	}}, chapter{"cloned", func(t *testing.T) {
		data, err := os.ReadFile(w.ledger)
		if err != nil {
			t.Fatal(err)
		}
		ledger := filepath.Join(t.TempDir(), "clone.ledger")
		if err := os.WriteFile(ledger, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c.ctl(t, v.away, "volume", "clone", v.name, "clone", "--timeout", "30s")
		c.copied(t, v.home, "clone", ledger, w)
	}}, chapter{"with a replica lost", func(t *testing.T) {
		if err := c.Node(v.away).Kill(); err != nil {
			t.Fatal(err)
		}
		c.inSync(t, v.home, v.name, 30*time.Second, v.home)
		take(v.home, "s3", v.home)
		if err := c.StartNode(c.Node(v.away)); err != nil {
			t.Fatal(err)
		}
		c.inSync(t, v.home, v.name, time.Minute, both...)
		take(v.away, "s4", both...)
		c.refused(t, v.home, 4, []string{"held by 1"}, "volume", "snapshot", "restore", "s3", "old3", "--replicas", "2")
		c.ctl(t, v.home, "volume", "snapshot", "restore", "s3", "old3", "--timeout", "30s")
		uri := c.attach(t, v.home, "old3")
		w.compare(t, uri, ledgers[3], "newer")
		c.detach(t, v.home, "old3")
	}}, chapter{"deleted in another order", func(t *testing.T) {
		if len(held(v.home)) == 0 {
			t.Errorf("%s has cloned no chunk for a snapshot", v.home)
		}
		for _, i := range []int{2, 0, 4, 1, 3} {
			c.ctl(t, v.away, "volume", "snapshot", "delete", fmt.Sprintf("s%d", i), "--yes")
		}
		until(t, "nothing is left of the snapshots", 30*time.Second, func() (bool, error) {
			out := c.ctl(t, v.home, "volume", "snapshot", "list", "-o", "json")
			var l struct {
				Snapshots []snapshotView `json:"snapshots"`
			}
			err := json.Unmarshal([]byte(out), &l)
			return err == nil && len(l.Snapshots) == 0, errors.New(out)
		})
		for _, n := range both {
			if dirs := held(n); len(dirs) > 0 {
				t.Errorf("%s has %v", n, dirs)
			}
		}
	}})
	w.stop(t)
	c.detach(t, v.home, v.name)
	for i, name := range []string{"old0", "old2", "clone"} {
		c.copied(t, v.home, name, ledgers[[]int{0, 2, 2}[i]], w)
	}
	for _, name := range []string{"old0", "old2", "old3", "clone"} {
		c.ctl(t, v.home, "volume", "delete", name, "--yes", "--wait", "--timeout", "30s")
	}
	c.identical(t, v.name)
}

// TestCSISnapshots has the driver take a snapshot of a file system that is mounted, and mounts what is made from it, and a clone, beside it on the same node.
func TestCSISnapshots(t *testing.T) {
	needDisks(t, "mkfs.xfs")
	sockets := map[string]string{}
	c := own(t, serveCSI(sockets), func(u *lab.Undo, c *cluster) { disks(t, u, c, "mkfs.xfs", "-q", "-K") })
	a := orchestrate(t, sockets["a1"], filepath.Join(c.dir, "stage-a"))
	b := orchestrate(t, sockets["b1"], filepath.Join(c.dir, "stage-b"))
	create := func(name string, from *spec.VolumeContentSource) string {
		t.Helper()
		r := &spec.CreateVolumeRequest{Name: name, VolumeCapabilities: []*spec.VolumeCapability{onXFS}, Parameters: map[string]string{"replicas": "2"}, VolumeContentSource: from}
		if from == nil {
			r.CapacityRange = &spec.CapacityRange{RequiredBytes: 320 << 20}
		}
		for range 2 {
			if _, err := b.CreateVolume(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		made, err := a.CreateVolume(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return made.GetVolume().GetVolumeId()
	}
	id := create("pvc-1", nil)
	if err := a.use(t, id, "a1"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(a.staged(id), "file")
	write := func(text string) []byte {
		t.Helper()
		data := bytes.Repeat([]byte(text), 1<<12)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		sh(t, "sync", "-f", file)
		return data
	}
	first := write("before the snapshot\n")
	taken, err := b.CreateSnapshot(t.Context(), &spec.CreateSnapshotRequest{Name: "snap-1", SourceVolumeId: id})
	if err != nil || !taken.GetSnapshot().GetReadyToUse() {
		t.Fatal(taken, err)
	}
	snap := taken.GetSnapshot().GetSnapshotId()
	second := write("after the snapshot, and longer\n")
	old := create("pvc-old", &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Snapshot{Snapshot: &spec.VolumeContentSource_SnapshotSource{SnapshotId: snap}}})
	c.holds(t, a, old, "a1", first)
	clone := create("pvc-clone", &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: id}}})
	c.holds(t, a, clone, "a1", second)
	a.leave(t, id, "a1")
	if _, err := a.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a volume with a snapshot is deleted: %v", err)
	}
	for range 2 {
		if _, err := a.DeleteSnapshot(t.Context(), &spec.DeleteSnapshotRequest{SnapshotId: snap}); err != nil {
			t.Error(err)
		}
	}
	left, err := b.ListSnapshots(t.Context(), &spec.ListSnapshotsRequest{})
	if err != nil || len(left.GetEntries()) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if _, err := a.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id}); err != nil {
		t.Error(err)
	}
	c.holds(t, b, old, "b1", first)
	c.holds(t, b, clone, "b1", second)
}

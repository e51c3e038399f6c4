package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestCSIGroupSnapshots has the driver take snapshots of two file systems that are staged on two nodes, with what was written to them and not synced, and makes a volume of one.
func TestCSIGroupSnapshots(t *testing.T) {
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
	on := map[string]*orchestrator{"a1": orchestrate(t, sockets["a1"], filepath.Join(c.dir, "stage-a")), "b1": orchestrate(t, sockets["b1"], filepath.Join(c.dir, "stage-b"))}
	ids, want := map[string]string{}, map[string][]byte{}
	for _, node := range []string{"a1", "b1"} {
		o := on[node]
		made, err := o.CreateVolume(t.Context(), &spec.CreateVolumeRequest{
			Name: "pvc-" + node, VolumeCapabilities: []*spec.VolumeCapability{onXFS}, Parameters: map[string]string{"replicas": "2"}, CapacityRange: &spec.CapacityRange{RequiredBytes: 320 << 20},
		})
		if err != nil {
			t.Fatal(err)
		}
		ids[node] = made.GetVolume().GetVolumeId()
		if err := o.use(t, ids[node], node); err != nil {
			t.Fatal(err)
		}
		want[node] = bytes.Repeat([]byte("of "+node), 1<<14)
		if err := os.WriteFile(filepath.Join(o.staged(ids[node]), "file"), want[node], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cc, err := grpc.NewClient("unix://"+sockets["b1"], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	groups := spec.NewGroupControllerClient(cc)
	var taken *spec.VolumeGroupSnapshot
	for range 2 {
		resp, err := groups.CreateVolumeGroupSnapshot(t.Context(), &spec.CreateVolumeGroupSnapshotRequest{Name: "both", SourceVolumeIds: []string{ids["a1"], ids["b1"]}})
		if err != nil || !resp.GetGroupSnapshot().GetReadyToUse() || len(resp.GetGroupSnapshot().GetSnapshots()) != 2 {
			t.Fatal(resp, err)
		}
		if taken != nil && taken.GetGroupSnapshotId() != resp.GetGroupSnapshot().GetGroupSnapshotId() {
			t.Error("taken twice")
		}
		taken = resp.GetGroupSnapshot()
	}
	var members []string
	for _, s := range taken.GetSnapshots() {
		members = append(members, s.GetSnapshotId())
		if f := c.frozen(t, "a2", s.GetSnapshotId()); !f.Frozen {
			t.Errorf("the snapshot of volume %s was not frozen: %s", s.GetSourceVolumeId(), f.Why)
		}
		if _, err := on["a1"].DeleteSnapshot(t.Context(), &spec.DeleteSnapshotRequest{SnapshotId: s.GetSnapshotId()}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("one of the two is deleted: %v", err)
		}
		node := map[string]string{ids["a1"]: "a1", ids["b1"]: "b1"}[s.GetSourceVolumeId()]
		made, err := on[node].CreateVolume(t.Context(), &spec.CreateVolumeRequest{
			Name: "from-" + node, VolumeCapabilities: []*spec.VolumeCapability{onXFS}, Parameters: map[string]string{"replicas": "2"},
			VolumeContentSource: &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Snapshot{Snapshot: &spec.VolumeContentSource_SnapshotSource{SnapshotId: s.GetSnapshotId()}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		c.holds(t, on[node], made.GetVolume().GetVolumeId(), node, want[node])
	}
	if _, err := groups.GetVolumeGroupSnapshot(t.Context(), &spec.GetVolumeGroupSnapshotRequest{GroupSnapshotId: taken.GetGroupSnapshotId(), SnapshotIds: members}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if _, err := groups.DeleteVolumeGroupSnapshot(t.Context(), &spec.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: taken.GetGroupSnapshotId(), SnapshotIds: members}); err != nil {
			t.Error(err)
		}
	}
	if left, err := on["a1"].ListSnapshots(t.Context(), &spec.ListSnapshotsRequest{}); err != nil || len(left.GetEntries()) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	for node, o := range on {
		o.leave(t, ids[node], node)
	}
}

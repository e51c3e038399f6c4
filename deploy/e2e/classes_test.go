package e2e

import (
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestClasses: volumes that nodes of both domains make for claims of one namespace are in its group from their beginning, and the group goes with the last of them; their
// resync priority is changed by a node of the other domain while they are attached; and nobody who asks for encryption gets a volume.
func TestClasses(t *testing.T) {
	sockets := map[string]string{}
	c := own(t, serveCSI(sockets))
	raw := &spec.VolumeCapability{AccessMode: onXFS.GetAccessMode(), AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}}
	at := map[string]*orchestrator{"a1": orchestrate(t, sockets["a1"], c.dir), "b1": orchestrate(t, sockets["b1"], c.dir)}
	create := func(node, name, namespace string, more ...string) (string, error) {
		params := map[string]string{"replicas": "2", "group": "k1.${pvc.namespace}", "resyncPriority": "low", "csi.storage.k8s.io/pvc/namespace": namespace}
		for _, p := range more {
			params[p] = "true"
		}
		resp, err := at[node].CreateVolume(t.Context(), &spec.CreateVolumeRequest{
			Name: name, VolumeCapabilities: []*spec.VolumeCapability{raw}, CapacityRange: &spec.CapacityRange{RequiredBytes: 16 << 20}, Parameters: params,
		})
		return resp.GetVolume().GetVolumeId(), err
	}
	var ids []string
	for _, v := range []struct{ node, name string }{{"a1", "pvc-1"}, {"b1", "pvc-2"}, {"b1", "pvc-1"}} {
		id, err := create(v.node, v.name, "shop")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if ids[2] != ids[0] {
		t.Errorf("made again it is volume %s, not %s", ids[2], ids[0])
	}
	if _, err := create("a1", "pvc-1", "bank"); status.Code(err) != codes.AlreadyExists {
		t.Errorf("made again in another namespace: %v", err)
	}
	if _, err := create("b1", "pvc-3", "shop", "encryption"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "nothing is encrypted") {
		t.Errorf("encrypted: %v", err)
	}
	group := c.ctl(t, "b2", "group", "inspect", "k1.shop", "-o", "json")
	for _, id := range ids {
		if !strings.Contains(group, id) {
			t.Errorf("volume %s is not in %s", id, group)
		}
	}
	c.attach(t, "a1", ids[0], "nbd")
	if _, err := at["b1"].ControllerModifyVolume(t.Context(), &spec.ControllerModifyVolumeRequest{VolumeId: ids[0], MutableParameters: map[string]string{"resyncPriority": "high"}}); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{ids[0]: "high", ids[1]: "low"} {
		until(t, "the priority is shown", 10*time.Second, func() (bool, error) {
			for line := range strings.Lines(c.ctl(t, "b2", "volume", "inspect", id)) {
				if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "Resync priority" {
					return strings.TrimSpace(value) == want, nil
				}
			}
			return false, nil
		})
	}
	c.detach(t, "a1", ids[0])
	for i, id := range ids[:2] {
		if _, err := at["b1"].DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Fatal(err)
		}
		if there := strings.Contains(c.ctl(t, "a2", "group", "list"), "k1.shop"); there != (i == 0) {
			t.Errorf("%d volumes are deleted, the group is there: %v", i+1, there)
		}
	}
}

//go:build kube

package kube

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// snapshots are the arguments of helm by which the chart installs the snapshot controller, and classes to use it and to change volumes with.
var snapshots = []string{
	"--set", "snapshotController.enabled=true", "--set", "snapshotController.image.repository=registry.local/snapshot-controller",
	"--set-string", "snapshotController.image.tag=1", "--set", "controller.snapshotter.groups=true",
	"--set-json", `volumeSnapshotClasses=[{"name":"tandem","default":true}]`,
	"--set-json", `volumeGroupSnapshotClasses=[{"name":"tandem","default":true}]`,
	"--set-json", `volumeAttributesClasses=[{"name":"slow","parameters":{"iops":"500","protection":"max-protection"}},{"name":"wrong","parameters":{"replicas":"1"}}]`,
}

// withSnapshots makes a cluster of three nodes that has snapshots, and Tandem installed with all that the chart has for volumes. Names of nodes begin with prefix.
func withSnapshots(t *testing.T, prefix string, images ...Image) *stand {
	t.Helper()
	top, bin := programs(t)
	dir, undo := workDir(t)
	tandem, err := TandemImage(t.Context(), top, bin, filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	images = append(images, SidecarImages(bin)...)
	w, err := NewWorld(t.Context(), bin, dir, undo, append(images, tandem, SidecarImage(bin, "snapshot-controller"))...)
	if err != nil {
		t.Fatal(err)
	}
	w.disk = 100 << 30 // for the 256 volumes that a node is said to take, 320 MiB each
	c := cluster(t, w, "metro", prefix+"-w", prefix+"-a", prefix+"-b")
	witness := c.Node(prefix + "-w")
	s := &stand{t: t, c: c, a: c.Node(prefix + "-a"), b: c.Node(prefix + "-b"), more: snapshots}
	s.domains = map[*Node]string{s.a: "north", s.b: "south", witness: third}
	t.Cleanup(s.tell)
	crds, err := SnapshotCRDs(t.Context(), top)
	if err != nil {
		t.Fatal(err)
	}
	s.must(crds, "create", "-f", "-")
	s.must("", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	s.install(top, makeAuthority(t, bin, dir), s.a, s.b, witness)
	s.founded(top)
	s.until("True True", "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/component=snapshot-controller",
		"-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
	return s
}

// TestVolumes does with volumes what Kubernetes has words for: they grow under their pods, are cut, restored, cloned, and changed by a class, all by the sidecars
// of the chart and from whatever node these work on.
func TestVolumes(t *testing.T) {
	lap := laps(t)
	s := withSnapshots(t, "volumes")
	lap("installed")

	s.claim("files", "Filesystem")
	s.pod("files", s.a, false)
	s.claim("raw", "Block")
	s.pod("raw", s.b, true)
	sum := s.sh("files", "dd if=/dev/urandom of=/data/f bs=1048576 count=20 2>/dev/null && sync && sha256sum /data/f")
	had := s.room("files")
	lap("two pods Ready, one in each site")
	for _, name := range []string{"files", "raw"} {
		s.must("", "patch", "pvc", name, "-p", `{"spec":{"resources":{"requests":{"storage":"600Mi"}}}}`)
	}
	for _, name := range []string{"files", "raw"} {
		s.until("600Mi", "get", "pvc", name, "-o", "jsonpath={.status.capacity.storage}")
	}
	if has := s.room("files"); has < had+190 || has > had+200 {
		t.Errorf("the file system in the pod has %d MiB, had %d, and the volume got 200 more", has, had)
	}
	if got := s.sh("files", "sha256sum /data/f"); got != sum {
		t.Errorf("the volume has grown, and the file is %s, was %s", got, sum)
	}
	if got := s.sh("raw", "dd if=/data bs=1048576 skip=599 2>/dev/null | wc -c"); got != "1048576" {
		t.Errorf("behind the 599th MiB of the device are %s bytes", got)
	}
	lap("a file system and a device have grown under their pods")

	s.must(`{"apiVersion":"snapshot.storage.k8s.io/v1","kind":"VolumeSnapshot","metadata":{"name":"then"},"spec":{"source":{"persistentVolumeClaimName":"files"}}}`, "apply", "-f", "-")
	s.until("true 600Mi", "get", "volumesnapshot", "then", "-o", "jsonpath={.status.readyToUse} {.status.restoreSize}")
	lap("snapshot ready")
	later := s.sh("files", "dd if=/dev/urandom of=/data/f bs=1048576 count=20 2>/dev/null && sync && sha256sum /data/f")
	s.claimFrom("restored", "800Mi", `{"apiGroup":"snapshot.storage.k8s.io","kind":"VolumeSnapshot","name":"then"}`)
	s.pod("restored", s.b, false)
	if has := s.room("restored"); has < had+390 || has > had+400 {
		t.Errorf("the file system in a pod of what was restored to 800 MiB has %d MiB, that of a volume of 400 has %d", has, had)
	}
	if got := s.sh("restored", "sha256sum /data/f"); got != sum {
		t.Errorf("in what was restored the file is %s, was %s when it was cut", got, sum)
	}
	lap("restored to a larger one, pod Ready")
	s.claimFrom("clone", "600Mi", `{"kind":"PersistentVolumeClaim","name":"files"}`)
	s.pod("clone", s.a, false) // where the volume itself is mounted
	if got := s.sh("clone", "sha256sum /data/f"); got != later {
		t.Errorf("in the clone the file is %s, was %s", got, later)
	}
	lap("cloned, pod Ready")

	// One of the two is on another node than the sidecar that asks.
	volumes := map[string]string{}
	for _, name := range []string{"files", "restored"} {
		volumes[name] = s.must("", "get", "pvc", name, "-o", "jsonpath={.spec.volumeName}")
		s.must("", "patch", "pvc", name, "-p", `{"spec":{"volumeAttributesClassName":"slow"}}`)
	}
	for _, name := range []string{"files", "restored"} {
		s.until("slow", "get", "pvc", name, "-o", "jsonpath={.status.currentVolumeAttributesClassName}")
		out := s.ctl("south", "volume", "inspect", volumes[name], "-o", "json")
		for _, want := range []string{`"iops": "500"`, `"protection": "PROTECTION_MAX_PROTECTION"`} {
			if !strings.Contains(out, want) {
				t.Errorf("claim %s has class slow, and the volume has not %s: %s", name, want, out)
			}
		}
	}
	lap("two volumes have another class")
	s.must("", "patch", "pvc", "clone", "-p", `{"spec":{"volumeAttributesClassName":"wrong"}}`)
	s.until("Infeasible", "get", "pvc", "clone", "-o", "jsonpath={.status.modifyVolumeStatus.status}")
	lap("a class that asks for what cannot be changed is refused")

	s.must("", "delete", "pod", "--all")
	s.must("", "delete", "pvc", "files") // before its snapshot
	s.must("", "delete", "volumesnapshot", "--all")
	s.until("", "get", "volumesnapshotcontents", "-o", "name")
	s.must("", "delete", "pvc", "--all", "--wait=false")
	s.nothingLeft()
	if out := s.ctl("north", "volume", "snapshot", "list", "-o", "json"); strings.Contains(out, `"id"`) {
		t.Errorf("snapshots are left: %s", out)
	}
	for _, n := range []*Node{s.a, s.b} {
		if found := s.mounts(n); len(found) > 0 {
			t.Errorf("mounts are left on %s: %v", n.Name, found)
		}
	}
	if found := loops(t); len(found) > 0 {
		t.Errorf("loop devices are left: %v", found)
	}
	lap("deleted, nothing left")
}

// claimFrom makes a claim with the content of another object.
func (s *stand) claimFrom(name, size, source string) {
	s.t.Helper()
	s.must(fmt.Sprintf(`{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":%q},"spec":{"storageClassName":"tandem","accessModes":["ReadWriteOnce"],
		"resources":{"requests":{"storage":%q}},"dataSource":%s}}`, name, size, source), "apply", "-f", "-")
}

// room is how much the file system of a pod holds, in MiB.
func (s *stand) room(pod string) int {
	s.t.Helper()
	f := strings.Fields(s.sh(pod, "df -m /data"))
	for i := range f {
		if f[i] == "/data" && i >= 4 {
			n, err := strconv.Atoi(f[i-4])
			if err != nil {
				s.t.Fatal(err)
			}
			return n
		}
	}
	s.t.Fatalf("df says %q", f)
	return 0
}

//go:build kube

package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

const namespace = "tandem-system"

// third is the domain of the witness.
const third = "third"

// stand is a Kubernetes with Tandem installed from the chart.
type stand struct {
	t       *testing.T
	c       *Cluster
	domains map[*Node]string
	a, b    *Node // two nodes that store
}

// must runs kubectl and wants it to succeed.
func (s *stand) must(input string, args ...string) string {
	s.t.Helper()
	out, err := s.c.Kubectl(s.t.Context(), input, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// until waits until kubectl says what is wanted.
func (s *stand) until(want string, args ...string) {
	s.t.Helper()
	var last string
	err := lab.Until(s.t.Context(), strings.Join(args, " ")+" says "+want, 2*time.Minute, 200*time.Millisecond, func() (bool, error) {
		out, err := s.c.Kubectl(s.t.Context(), "", args...)
		last = strings.TrimSpace(out)
		return err == nil && last == want, err
	})
	if err != nil {
		s.t.Fatalf("%v; last: %q", err, last)
	}
}

// makeAuthority makes the authority of cluster metro and returns its directory.
func makeAuthority(t *testing.T, bin, dir string) string {
	t.Helper()
	ca := filepath.Join(dir, "ca")
	if _, err := lab.Run(t.Context(), filepath.Join(bin, "tandemctl"), "pki", "create-ca", "--cluster", "metro", "--dir", ca); err != nil {
		t.Fatal(err)
	}
	return ca
}

// install makes the secret of the authority and installs the chart as an administrator does, with the kvdb on these members. Nothing is waited for.
func (s *stand) install(top, ca string, members ...*Node) {
	t := s.t
	t.Helper()
	var nodes, domains []string
	for n, d := range s.domains {
		s.must("", "label", "node", n.Name, "topology.kubernetes.io/zone="+d)
		role := "node"
		if d == third {
			role = "witness"
		}
		domains = append(domains, fmt.Sprintf(`{name: %[1]s, role: %[2]s, nodeSelector: {topology.kubernetes.io/zone: %[1]s}}`, d, role))
	}
	for _, n := range members {
		nodes = append(nodes, fmt.Sprintf("{node: %s, address: %s}", n.Name, n.Address))
	}
	s.must("", "create", "namespace", namespace)
	s.must("", "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=privileged")
	s.must("", "-n", namespace, "create", "secret", "generic", "tandem-ca", "--from-file="+ca+"/ca.crt", "--from-file="+ca+"/ca.key")
	values := fmt.Sprintf(`
clusterName: metro
image: {repository: registry.local/tandem, tag: "1", pullPolicy: Never}
controller:
  provisioner: {image: {repository: registry.local/csi-provisioner, tag: "1"}}
  attacher: {image: {repository: registry.local/csi-attacher, tag: "1"}}
domains: [%s]
kvdb: {raft: {bootstrap: true, members: [%s]}}
`, strings.Join(domains, ", "), strings.Join(nodes, ", "))
	if _, err := s.c.Helm(t.Context(), values, "install", "tandem", filepath.Join(top, "deploy", "helm", "tandem"), "-n", namespace, "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// founded waits until the store is founded, and has it never be founded again.
func (s *stand) founded(top string) {
	s.t.Helper()
	s.ready()
	if _, err := s.c.Helm(s.t.Context(), "", "upgrade", "tandem", filepath.Join(top, "deploy", "helm", "tandem"), "-n", namespace, "--reuse-values", "--set", "kvdb.raft.bootstrap=false"); err != nil {
		s.t.Fatal(err)
	}
	s.rolled()
}

// ready waits until all pods are, and the kubelets know the driver with its topology.
func (s *stand) ready() {
	s.t.Helper()
	for component, n := range map[string]int{"node": len(s.domains), "controller": 2} {
		s.until(strings.TrimSpace(strings.Repeat("True ", n)), "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/component="+component,
			"-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
	}
	for n, domain := range s.domains {
		if domain == third {
			continue
		}
		s.until("csi.tandem.storage "+n.Name, "get", "csinode", n.Name, "-o", "jsonpath={.spec.drivers[*].name} {.spec.drivers[*].nodeID}")
		s.until(domain, "get", "node", n.Name, "-o", `jsonpath={.metadata.labels.topology\.tandem\.storage/domain}`)
	}
}

// accepted wants the API server to take these manifests, strictly, without having them.
func (s *stand) accepted(manifests string) {
	s.t.Helper()
	s.must(manifests, "apply", "--dry-run=server", "--validate=strict", "-f", "-")
}

// ctl runs tandemctl in the pod of a domain.
func (s *stand) ctl(domain string, args ...string) string {
	s.t.Helper()
	return s.must("", append([]string{"-n", namespace, "exec", "ds/tandem-" + domain, "-c", "tandemd", "--", "tandemctl"}, args...)...)
}

// claim makes a claim of 400 MiB.
func (s *stand) claim(name, mode string) {
	s.t.Helper()
	s.must(fmt.Sprintf(`{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":%q},"spec":{"storageClassName":"tandem","volumeMode":%q,
		"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"400Mi"}}}}`, name, mode), "apply", "-f", "-")
}

// pod starts a pod, see start, and waits until it is Ready.
func (s *stand) pod(claim string, on *Node, block bool) {
	s.t.Helper()
	s.start(claim, on, block)
	s.must("", "wait", "--for=condition=Ready", "pod", claim, "--timeout=120s")
}

// start starts a pod on a node that uses the claim of its name as /data, a directory or a device.
func (s *stand) start(claim string, on *Node, block bool) {
	s.t.Helper()
	use := `"volumeMounts":[{"name":"v","mountPath":"/data"}]`
	if block {
		use = `"volumeDevices":[{"name":"v","devicePath":"/data"}]`
	}
	s.must(fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%[1]q},"spec":{"terminationGracePeriodSeconds":0,"nodeSelector":{"kubernetes.io/hostname":%[2]q},
		"tolerations":[{"operator":"Exists"}],"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":%[1]q}}],
		"containers":[{"name":"c","image":%[3]q,"imagePullPolicy":"Never","command":["sleep","100000"],%[4]s}]}}`, claim, on.Name, ShellImage, use), "apply", "-f", "-")
}

func (s *stand) sh(pod, script string) string {
	s.t.Helper()
	return s.must("", "exec", pod, "--", "sh", "-ec", script)
}

// nothingLeft wants no volume and no attachment, in Kubernetes and in Tandem.
func (s *stand) nothingLeft() {
	s.t.Helper()
	s.until("", "get", "persistentvolumes,volumeattachments", "-o", "name")
	err := lab.Until(s.t.Context(), "no volume is left", time.Minute, 200*time.Millisecond, func() (bool, error) {
		out, err := s.c.Kubectl(s.t.Context(), "", "-n", namespace, "exec", "ds/tandem-north", "-c", "tandemd", "--", "tandemctl", "volume", "list", "-o", "json")
		return err == nil && !strings.Contains(out, `"id"`), err
	})
	if err != nil {
		s.t.Error(err)
	}
}

// mounts are those of volumes that a node has.
func (s *stand) mounts(n *Node) []string {
	s.t.Helper()
	out, err := n.Run(s.t.Context(), "cat", "/proc/1/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "csi.tandem.storage") || strings.Contains(line, "/volumeDevices/") || strings.Contains(line, "fuse") && strings.Contains(line, "tandem") {
			found = append(found, line)
		}
	}
	return found
}

// loops are the loop devices of this machine that show a volume of the chart's daemons: those of others are elsewhere.
func loops(t *testing.T) []string {
	t.Helper()
	files, err := loopFiles()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for device, file := range files {
		if strings.HasPrefix(file, "/run/tandem/") || file == "/device" { // the latter of a daemon that has ended
			found = append(found, device+" "+file)
		}
	}
	return found
}

// TestTandem installs Tandem and uses it: a file system and a raw device go from one site to the other with what is on them, a database too, and
// everything is gone when it is deleted.
func TestTandem(t *testing.T) {
	top, bin := programs(t)
	dir, undo := workDir(t)
	tandem, err := TandemImage(t.Context(), top, bin, filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	postgres, err := PostgresImage(t.Context(), filepath.Join(dir, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	lap := laps(t)
	w, err := NewWorld(t.Context(), bin, dir, undo, tandem, postgres, SidecarImage(bin, "csi-provisioner"), SidecarImage(bin, "csi-attacher"))
	if err != nil {
		t.Fatal(err)
	}
	c := cluster(t, w, "metro", "site-w", "site-a", "site-b")
	witness := c.Node("site-w")
	s := &stand{t: t, c: c, a: c.Node("site-a"), b: c.Node("site-b")}
	s.domains = map[*Node]string{s.a: "north", s.b: "south", witness: third}
	t.Cleanup(s.tell)
	lap("three nodes Ready")
	s.install(top, makeAuthority(t, bin, dir), s.a, s.b, witness)
	s.founded(top)
	lap("installed")

	if out := s.must("", "-n", namespace, "get", "csistoragecapacities", "-o", "name"); out == "" {
		t.Error("the scheduler is told of no capacity")
	}

	s.accepted(rendered(t, bin, top))
	all := filepath.Join(dir, "everything.yaml")
	if err := os.WriteFile(all, []byte(everything("/srv")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := c.Helm(t.Context(), "", "template", "tandem", filepath.Join(top, "deploy", "helm", "tandem"), "-n", namespace, "-f", all)
	if err != nil {
		t.Fatal(err)
	}
	s.accepted(out)

	// A file system, in both sites.
	s.claim("files", "Filesystem")
	s.pod("files", s.a, false)
	lap("claim to pod Ready, xfs")
	sum := s.sh("files", "dd if=/dev/urandom of=/data/f bs=1048576 count=20 2>/dev/null && sync && sha256sum /data/f")
	s.must("", "delete", "pod", "files")
	lap("written, pod deleted")
	s.pod("files", s.b, false)
	lap("pod Ready at the other site")
	if got := s.sh("files", "sha256sum /data/f"); got != sum {
		t.Errorf("at the other site the file is %s, written was %s", got, sum)
	}
	if out := s.ctl("south", "volume", "list"); !strings.Contains(out, s.b.Name) {
		t.Errorf("tandemctl knows of no attachment on %s: %s", s.b.Name, out)
	}

	// A raw device.
	s.claim("raw", "Block")
	s.pod("raw", s.a, true)
	lap("claim to pod Ready, block")
	sum = s.sh("raw", "dd if=/dev/urandom of=/data bs=1048576 count=8 2>/dev/null && sync && dd if=/data bs=1048576 count=8 2>/dev/null | sha256sum")
	s.must("", "delete", "pod", "raw")
	s.pod("raw", s.b, true)
	if got := s.sh("raw", "dd if=/data bs=1048576 count=8 2>/dev/null | sha256sum"); got != sum {
		t.Errorf("at the other site the device has %s, written was %s", got, sum)
	}
	lap("read at the other site")

	if found := loops(t); len(found) != 2 {
		t.Errorf("two volumes are attached, on %v", found)
	}
	if found := s.mounts(s.b); len(found) < 3 { // a file system at two places, a device at one
		t.Errorf("two volumes are in use, at %v", found)
	}

	rows := s.database()
	lap("a database at both sites")
	s.siteLost(rows, lap)

	s.must("", "delete", "statefulset", "db")
	s.must("", "delete", "pod", "files", "raw", "--ignore-not-found")
	s.must("", "delete", "pvc", "--all", "--wait=false")
	s.nothingLeft()
	lap("deleted, nothing left")
	for _, n := range []*Node{s.a, s.b} {
		if found := s.mounts(n); len(found) > 0 {
			t.Errorf("mounts are left on %s: %v", n.Name, found)
		}
	}
	if found := loops(t); len(found) > 0 {
		t.Errorf("loop devices are left: %v", found)
	}
	if _, err := c.Helm(t.Context(), "", "uninstall", "tandem", "-n", namespace, "--wait", "--timeout", "2m"); err != nil {
		t.Fatal(err)
	}
	s.until("", "-n", namespace, "get", "pods", "-o", "name")
	for _, n := range []*Node{s.a, s.b} {
		s.until("", "get", "csinode", n.Name, "-o", "jsonpath={.spec.drivers[*].name}")
	}
	s.until("", "get", "csidrivers,storageclasses,clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/name=tandem", "-o", "name")
	lap("uninstalled")
}

// TestTwoKubernetes has two Kubernetes with one Tandem. What a pod of the first one has written a pod of the second one reads, when the volume is handed over
// with a PersistentVolume, and back; until then it is refused. Then the first site is lost with a pod on it, an operator takes the promise to its node back, and
// the second Kubernetes goes on.
func TestTwoKubernetes(t *testing.T) {
	top, bin := programs(t)
	dir, undo := workDir(t)
	tandem, err := TandemImage(t.Context(), top, bin, filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	lap := laps(t)
	w, err := NewWorld(t.Context(), bin, dir, undo, tandem, SidecarImage(bin, "csi-provisioner"), SidecarImage(bin, "csi-attacher"))
	if err != nil {
		t.Fatal(err)
	}
	one, two := cluster(t, w, "one", "one-w", "one-a"), cluster(t, w, "two", "two-b")
	lap("two clusters Ready")
	north := &stand{t: t, c: one, a: one.Node("one-a"), b: one.Node("one-a"), domains: map[*Node]string{one.Node("one-w"): third, one.Node("one-a"): "north"}}
	south := &stand{t: t, c: two, a: two.Node("two-b"), b: two.Node("two-b"), domains: map[*Node]string{two.Node("two-b"): "south"}}
	t.Cleanup(north.tell)
	t.Cleanup(south.tell)
	ca := makeAuthority(t, bin, dir)
	members := []*Node{one.Node("one-a"), two.Node("two-b"), one.Node("one-w")}
	north.install(top, ca, members...)
	south.install(top, ca, members...)
	north.founded(top)
	south.founded(top)
	lap("installed in both")

	north.claim("files", "Filesystem")
	north.pod("files", north.a, false)
	sum := north.sh("files", "dd if=/dev/urandom of=/data/f bs=1048576 count=10 2>/dev/null && sync && sha256sum /data/f")
	volume := north.must("", "get", "pvc", "files", "-o", "jsonpath={.spec.volumeName}")
	handle := north.must("", "get", "pv", volume, "-o", "jsonpath={.spec.csi.volumeHandle}")
	if out := south.ctl("south", "volume", "list"); !strings.Contains(out, volume) {
		t.Errorf("the other Kubernetes' Tandem does not know %s: %s", volume, out)
	}
	south.must(fmt.Sprintf(`{"apiVersion":"v1","kind":"List","items":[
		{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"files"},"spec":{"capacity":{"storage":"400Mi"},"accessModes":["ReadWriteOnce"],
			"persistentVolumeReclaimPolicy":"Retain","storageClassName":"","csi":{"driver":"csi.tandem.storage","volumeHandle":%q,"fsType":"xfs"},
			"claimRef":{"namespace":"default","name":"files"}}},
		{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"files"},"spec":{"storageClassName":"","volumeName":"files",
			"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"400Mi"}}}}]}`, handle), "apply", "-f", "-")
	south.start("files", south.a, false)
	err = lab.Until(t.Context(), "the attachment is refused", time.Minute, 200*time.Millisecond, func() (bool, error) {
		out, err := south.c.Kubectl(t.Context(), "", "get", "volumeattachments", "-o", "jsonpath={.items[*].status.attachError.message}")
		return strings.Contains(out, north.a.Name), err
	})
	if err != nil {
		t.Fatal(err)
	}
	lap("used in one, refused in the other")
	north.must("", "delete", "pod", "files")
	south.must("", "wait", "--for=condition=Ready", "pod", "files", "--timeout=120s")
	if got := south.sh("files", "sha256sum /data/f"); got != sum {
		t.Errorf("in the other Kubernetes the file is %s, written was %s", got, sum)
	}
	lap("handed over")
	south.must("", "delete", "pod", "files")
	north.pod("files", north.a, false)
	sum = north.sh("files", "dd if=/dev/urandom of=/data/f bs=1048576 count=10 2>/dev/null && sync && sha256sum /data/f")
	lap("back, and written")
	south.start("files", south.a, false)
	if err := north.a.Kill(); err != nil {
		t.Fatal(err)
	}
	err = lab.Until(t.Context(), "the promise is taken back", time.Minute, time.Second, func() (bool, error) {
		_, err := south.c.Kubectl(t.Context(), "", "-n", namespace, "exec", "ds/tandem-south", "-c", "tandemd", "--", "tandemctl", "host", "unpublish", volume, "--node", north.a.Name)
		return err == nil, err // refused as long as the node is not known to be gone
	})
	if err != nil {
		t.Fatal(err)
	}
	lap("first site lost, and that noticed")
	south.must("", "wait", "--for=condition=Ready", "pod", "files", "--timeout=150s")
	if got := south.sh("files", "sha256sum /data/f"); got != sum {
		t.Errorf("after the loss of the first site the file is %s, written was %s", got, sum)
	}
	lap("pod Ready in the second Kubernetes")
}

// database runs PostgreSQL in a StatefulSet, by a user and a group of its own, has it go to the other site with what was committed, and leaves it there. It
// returns what s.rows says of the table from then on.
func (s *stand) database() string {
	t := s.t
	t.Helper()
	set := fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"db"},"spec":{"replicas":1,"serviceName":"db",
		"selector":{"matchLabels":{"app":"db"}},
		"volumeClaimTemplates":[{"metadata":{"name":"data"},"spec":{"storageClassName":"tandem","accessModes":["ReadWriteOncePod"],"resources":{"requests":{"storage":"1Gi"}}}}],
		"template":{"metadata":{"labels":{"app":"db"}},"spec":{"terminationGracePeriodSeconds":30,
			"securityContext":{"runAsUser":%[2]d,"runAsGroup":%[2]d,"fsGroup":%[2]d,"fsGroupChangePolicy":"OnRootMismatch"},
			"containers":[{"name":"postgres","image":%[1]q,"imagePullPolicy":"Never",
				"env":[{"name":"PGDATA","value":"/data/db"}],
				"volumeMounts":[{"name":"data","mountPath":"/data"},{"name":"tmp","mountPath":"/tmp"}],
				"readinessProbe":{"exec":{"command":["psql","-h","/tmp","-c","select 1","postgres"]},"periodSeconds":1}}],
			"volumes":[{"name":"tmp","emptyDir":{}}]}}}}`, postgresImage, postgresUser)
	s.must("", "cordon", s.b.Name)
	s.must(set, "apply", "-f", "-")
	s.until("True", "get", "pod", "db-0", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	s.must("", "exec", "db-0", "--", "psql", "-h", "/tmp", "-qc", "create table t as select g, md5(g::text) as h from generate_series(1, 20000) g", "postgres")
	want := s.rows()
	if !strings.HasPrefix(want, "20000|") {
		t.Fatalf("the table is %s", want)
	}
	s.must("", "uncordon", s.b.Name)
	s.must("", "cordon", s.a.Name)
	s.must("", "delete", "pod", "db-0")
	s.until(s.b.Name+" True", "get", "pod", "db-0", "-o", `jsonpath={.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status}`)
	if got := s.rows(); got != want {
		t.Errorf("at the other site the table is %s, written was %s", got, want)
	}
	s.must("", "uncordon", s.a.Name)
	return want
}

// rows is how many rows the table has, and a digest of them.
func (s *stand) rows() string {
	s.t.Helper()
	return s.must("", "exec", "db-0", "--", "psql", "-h", "/tmp", "-Atc", "select count(*), md5(string_agg(h, '' order by g)) from t", "postgres")
}

// siteLost ends the node at the second site, with a database and two more pods on it, at one instant. Nobody says so to anybody, and the database goes on at
// the first site with all that was committed. When the node is back, the database returns to it.
func (s *stand) siteLost(rows string, lap func(string)) {
	t := s.t
	t.Helper()
	if err := s.b.Kill(); err != nil {
		t.Fatal(err)
	}
	s.until(s.a.Name+" True", "get", "pod", "db-0", "-o", `jsonpath={.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status}`)
	if got := s.rows(); got != rows {
		t.Errorf("after the loss of the site the table is %s, written was %s", got, rows)
	}
	lap("site lost, database Ready at the other one")
	if err := s.b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.c.Ready(t.Context(), s.b.Name); err != nil {
		t.Fatal(err)
	}
	s.unmarked(s.b)
	s.ready()
	lap("site back")
	s.must("", "cordon", s.a.Name)
	s.must("", "delete", "pod", "db-0")
	s.until(s.b.Name+" True", "get", "pod", "db-0", "-o", `jsonpath={.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status}`)
	if got := s.rows(); got != rows {
		t.Errorf("back at the site that was lost the table is %s, written was %s", got, rows)
	}
	s.must("", "uncordon", s.a.Name)
	lap("database back at the site")
}

// tell is what one wants to see of a test that failed.
func (s *stand) tell() {
	if !s.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"get", "pods,pvc,pv,volumeattachments", "-A", "-o", "wide"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"-n", namespace, "logs", "-l", "app.kubernetes.io/name=tandem", "--all-containers", "--prefix", "--tail=40"},
	} {
		out, err := s.c.Kubectl(ctx, "", args...)
		s.t.Logf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

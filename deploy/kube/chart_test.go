//go:build kube

package kube

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/tandem-storage/tandem/deploy/lab"
)

var update = flag.Bool("update", false, "write deploy/manifests/tandem.yaml anew")

// rendered is the chart with values, as manifests.
func rendered(t *testing.T, bin, top string) string {
	t.Helper()
	out, err := lab.Run(t.Context(), "env", "HOME="+t.TempDir(), filepath.Join(bin, "helm"), "template", "tandem", filepath.Join(top, "deploy", "helm", "tandem"),
		"--namespace", namespace, "--values", filepath.Join(top, "deploy", "manifests", "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return "# Rendered from deploy/helm/tandem with deploy/manifests/values.yaml: make manifests. Do not edit.\n" + out
}

// TestManifests: the plain manifests are the chart's, and kustomize takes them.
func TestManifests(t *testing.T) {
	top, bin := programs(t)
	file := filepath.Join(top, "deploy", "manifests", "tandem.yaml")
	want := rendered(t, bin, top)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("deploy/manifests/tandem.yaml is not what the chart renders: make manifests")
	}
	out, err := lab.Run(t.Context(), filepath.Join(bin, "kubectl"), "kustomize", filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	if objects, want := strings.Count("\n"+out, "\nkind: "), strings.Count(string(got), "\nkind: "); objects != want || want < 10 {
		t.Errorf("kustomize knows %d objects, the manifests have %d", objects, want)
	}
}

// TestChartRefuses: values that would make something else than what was meant are refused in words.
func TestChartRefuses(t *testing.T) {
	top, bin := programs(t)
	const good = `
image: {repository: r/t}
domains: [{name: a, nodeSelector: {zone: a}}]
kvdb: {raft: {members: [{node: a1, address: 10.0.0.1}]}}
`
	for name, tc := range map[string]struct{ values, says string }{
		"nothing":                  {"", "domains: name at least one"},
		"no image":                 {strings.Replace(good, "r/t", `""`, 1), "image.repository: name the image"},
		"everywhere":               {strings.Replace(good, "{zone: a}", "{}", 1), `"a" has no nodeSelector`},
		"domain twice":             {strings.Replace(good, "}]\nkvdb", "}, {name: a, nodeSelector: {zone: b}}]\nkvdb", 1), `"a" is there twice`},
		"a set and all the others": {strings.Replace(good, "}]\nkvdb", "}, {name: a, nodeSet: x, nodeSelector: {zone: b}}]\nkvdb", 1), `"a" is there twice`},
		"set twice":                {strings.Replace(good, "{name: a,", "{name: a, nodeSet: x, nodeSelector: {zone: b}}, {name: a, nodeSet: x,", 1), `"a" is there twice`},
		"two sets":                 {strings.Replace(good, "{name: a,", "{name: a, nodeSet: x, nodeSelector: {zone: b}}, {name: a, nodeSet: y,", 1), ""},
		"no kvdb":                  {strings.Replace(good, "{node: a1, address: 10.0.0.1}", "", 1), "set raft.members, or etcd.endpoints"},
		"two kvdbs":                {strings.Replace(good, "kvdb: {", `kvdb: {etcd: {endpoints: ["https://e:1"]}, `, 1), "both set"},
		"good":                     {good, ""},
	} {
		t.Run(name, func(t *testing.T) {
			values := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(values, []byte(tc.values), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := lab.Run(t.Context(), "env", "HOME="+t.TempDir(), filepath.Join(bin, "helm"), "template", "tandem", filepath.Join(top, "deploy", "helm", "tandem"), "--values", values)
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
		})
	}
}

// everything is values with all that the chart can do besides what TestTandem installs. dir is for the directories of the configuration.
func everything(dir string) string {
	return fmt.Sprintf(`
clusterName: metro
image: {repository: registry.local/tandem}
imagePullSecrets: [{name: registry}]
dataDir: %[1]s/data
runDir: %[1]s/run
domains:
  - {name: a, nodeSet: r7, nodeSelector: {zone: a, rack: "7"}, pools: [%[1]s/p1, {path: %[1]s/p2, class: fast}], labels: {rack: "7"}}
  - {name: a, nodeSet: r8, nodeSelector: {zone: a, rack: "8"}, pools: [%[1]s/p1], labels: {rack: "8"}}
kvdb: {etcd: {endpoints: ["https://10.0.0.5:2379"], tlsSecret: etcd, username: tandem, passwordSecret: etcd-password}}
pki: {caSecret: ""}
config: {failover: {profile: aggressive}, replication: {resyncFloor: 32Mi}, log: {level: debug}}
controller: {snapshotter: {groups: true}}
snapshotController: {enabled: true}
storageClasses: [{name: other, default: true, reclaimPolicy: Retain, allowVolumeExpansion: false, parameters: {replicas: 2, csi.storage.k8s.io/fstype: ext4}}]
volumeAttributesClasses: [{name: slow, parameters: {iops: "500", bandwidth: 20MiB}}]
`, dir)
}

// TestChartConfigures: tandemd takes the configurations that the chart writes, with what is written by hand in them.
func TestChartConfigures(t *testing.T) {
	top, bin := programs(t)
	dir := t.TempDir()
	plain := fmt.Sprintf(`
image: {repository: r/t}
dataDir: %[1]s/data
runDir: %[1]s/run
pki: {caSecret: "", dir: %[1]s}
domains: [{name: a, nodeSelector: {zone: a}}, {name: c, role: witness, nodeSelector: {zone: c}}]
kvdb: {raft: {bootstrap: true, members: [{node: n1, address: "fd00::1"}]}}
`, dir)
	for name, values := range map[string]string{"embedded kvdb": plain, "everything": everything(dir)} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, "values.yaml")
			if err := os.WriteFile(file, []byte(values), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := lab.Run(t.Context(), "env", "HOME="+dir, filepath.Join(bin, "helm"), "template", "tandem", filepath.Join(top, "deploy", "helm", "tandem"), "--values", file)
			if err != nil {
				t.Fatal(err)
			}
			configs := 0
			for d := yaml.NewDecoder(strings.NewReader(out)); ; {
				var object struct {
					Kind string            `yaml:"kind"`
					Data map[string]string `yaml:"data"`
				}
				if err := d.Decode(&object); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				if object.Kind != "ConfigMap" {
					continue
				}
				configs++
				config := filepath.Join(dir, "tandemd.yaml")
				if err := os.WriteFile(config, []byte(object.Data["tandemd.yaml"]), 0o644); err != nil {
					t.Fatal(err)
				}
				// There are no certificates, which it finds when it has taken the configuration.
				out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "tandemd"), "--config", config, "--node-id", "n1", "--advertise-host", "fd00::1", "--member-if-listed").CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "open /pki/node.crt: no such file") {
					t.Errorf("%v: %s\n%s", err, out, object.Data["tandemd.yaml"])
				}
				if name == "everything" && !strings.Contains(string(out), `"failover.profile":"aggressive"`) {
					t.Errorf("what was written by hand is not there: %s", out)
				}
			}
			if configs == 0 {
				t.Error("no ConfigMap")
			}
		})
	}
}

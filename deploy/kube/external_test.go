//go:build kube

package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// Which of Kubernetes' specs for CSI drivers TestExternalStorage runs. All of them take half an hour and more.
var (
	focusSpecs = flag.String("focus", ".", "specs that TestExternalStorage runs, a regular expression")
	skipSpecs  = flag.String("skip", notHere, "specs that it does not run, a regular expression; the default are those that this machine has not what they want for")
	fromSpec   = flag.Int("from", 0, "number of the spec that it begins with, in its log")
	within     = flag.Duration("within", 0, "it begins no further specs after so long, and says with which to go on; 0: all")
	lanes      = flag.Int("lanes", 3, "so many specs at the same time, but for those that are to be alone")
	specLog    = flag.String("specs", "", "file to which it adds a line for each spec: number, what became of it, seconds, name")
)

// notHere are specs for what no driver of this kind has (Windows, ext3, volumes without a claim, volumes that the test makes by itself), or that want the images of a volume
// populator. docs/reference/external-storage.md.
const notHere = `any volume data source|\[Feature:Windows\]|Inline-volume|CSI Ephemeral|Pre-provisioned PV|\(ext3\)`

// spec is what became of one.
type spec struct {
	Container []string `json:"ContainerHierarchyTexts"`
	Leaf      string   `json:"LeafNodeText"`
	Type      string   `json:"LeafNodeType"`
	State     string
	RunTime   time.Duration
	Failure   struct{ Message string }
}

func (s *spec) name() string { return strings.Join(append(slices.Clone(s.Container), s.Leaf), " ") }

// short is its name without what all have.
func (s *spec) short() string {
	_, after, _ := strings.Cut(s.name(), "[Testpattern: ")
	return "[" + after
}

// focus is the regular expression by which ginkgo knows a spec: of texts that are empty it leaves the space out.
func focus(name string) string {
	return strings.Join(strings.Fields(regexp.QuoteMeta(name)), " +") + "$"
}

// What the driver says of itself, in files that some specs have others of.
const (
	driverFile   = "driver.yaml"
	anywhereFile = "anywhere.yaml" // without topologies
	atOnceFile   = "at-once.yaml"  // with a class that waits for no pod
	onceFile     = "once.yaml"     // with a class whose volumes lie in one domain
)

// fileFor is the file for a spec.
func fileFor(name string) string {
	has := func(part string) bool { return strings.Contains(name, part) }
	switch {
	// Two nodes are looked for in one topology if there are any, and here each has one node. Volumes that pods bring along and that wait for no pod are held to be impossible
	// where there are topologies: Tandem's lie in both.
	case has("different node"), has("(immediate-binding)"):
		return anywhereFile
	// No pod is started, and a volume that waits for its first is never made; and no speed is measured if volumes wait.
	case has("volume-modify-stress"), has("-performance"):
		return atOnceFile
	// A volume with a replica in each domain can be used in each, whatever its class allows.
	case has(" topology "):
		return onceFile
	default:
		return driverFile
	}
}

// classes are those of atOnceFile and onceFile.
const classes = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: at-once}
provisioner: csi.tandem.storage
allowVolumeExpansion: true
volumeBindingMode: Immediate
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: once}
provisioner: csi.tandem.storage
parameters: {replicas: "1"}
volumeBindingMode: WaitForFirstConsumer
`

func writeDrivers(top, dir string) error {
	data, err := os.ReadFile(filepath.Join(top, "deploy", "kube", "tools", "e2e", "tandem.yaml"))
	if err != nil {
		return err
	}
	for file, other := range map[string]struct{ line, with string }{
		driverFile:   {},
		anywhereFile: {`(?m)^ *TopologyKeys: .*\n`, ""},
		atOnceFile:   {`(?m)^StorageClass: .*\n`, "StorageClass: {FromExistingClassName: at-once}\n"},
		onceFile:     {`(?m)^StorageClass: .*\n`, "StorageClass: {FromExistingClassName: once}\n"},
	} {
		said := data
		if other.line != "" {
			if said = regexp.MustCompile(other.line).ReplaceAll(data, []byte(other.with)); bytes.Equal(said, data) {
				return fmt.Errorf("tandem.yaml has no line %s", other.line)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, file), said, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// specs runs the program of the specs, and returns those of its report.
func (s *stand) specs(dir, id, driver string, args ...string) ([]*spec, error) {
	report := filepath.Join(dir, id+".json")
	argv := append(s.c.world.space.Inside(s.c.bin("e2e.test"), "-kubeconfig", s.c.conf("admin"), "-kubectl-path", s.c.bin("kubectl"),
		"-storage.testdriver", filepath.Join(dir, driver), "-provider", "skeleton", "-minStartupPods", "0", "-ginkgo.json-report", report, "-ginkgo.timeout", "1h", "-ginkgo.no-color"), args...)
	cmd := exec.CommandContext(s.t.Context(), argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir, "KUBE_SSH_KEY_PATH="+s.c.world.shellKey(), "KUBE_SSH_USER=root")
	out, failed := cmd.CombinedOutput() // fails with a spec
	if err := os.WriteFile(filepath.Join(dir, id+".log"), out, 0o644); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(report)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no report: %w: %s", failed, out)
	}
	if err != nil {
		return nil, err
	}
	var all []struct{ SpecReports []*spec }
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	var its []*spec
	for _, r := range all {
		for _, p := range r.SpecReports {
			if p.Type == "It" && strings.Contains(p.name(), "External Storage") {
				its = append(its, p)
			} else if p.State == "failed" { // before all, or after
				return nil, fmt.Errorf("%s: %s", p.Type, p.Failure.Message)
			}
		}
	}
	return its, nil
}

// policies are for what the specs of groups do. They write the deletion policy of a VolumeGroupSnapshotClass into the parameters for the driver as well, and Tandem refuses
// a class with a parameter that it does not know: it is taken out where it says nothing else than the class itself. And whatever the driver says of sizes, they claim 1Mi, also
// of the snapshots of volumes that were made larger, which the external-provisioner refuses: they get the least size of a file system.
const policies = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: deletion-policy-once}
spec:
  reinvocationPolicy: Never
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [groupsnapshot.storage.k8s.io], apiVersions: ["*"], resources: [volumegroupsnapshotclasses], operations: [CREATE]}]
  matchConditions:
    - {name: twice, expression: "has(object.parameters) && 'deletionPolicy' in object.parameters && object.parameters['deletionPolicy'] == object.deletionPolicy"}
  mutations:
    - {patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'remove', path: '/parameters/deletionPolicy'}]"}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: deletion-policy-once}
spec: {policyName: deletion-policy-once}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: least-size}
spec:
  reinvocationPolicy: Never
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], resources: [persistentvolumeclaims], operations: [CREATE]}]
  matchConditions:
    - {name: groups, expression: "has(object.spec.storageClassName) && object.spec.storageClassName.startsWith('volumegroupsnapshottable')"}
    - {name: small, expression: "string(object.spec.resources.requests['storage']) == '1Mi'"}
  mutations:
    - {patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'replace', path: '/spec/resources/requests/storage', value: '320Mi'}]"}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: least-size}
spec: {policyName: least-size}
`

// regulate waits until the policies are in force.
func (s *stand) regulate() {
	s.t.Helper()
	s.must(policies, "create", "-f", "-")
	for _, try := range []struct{ object, path, want string }{
		{`{"apiVersion":"groupsnapshot.storage.k8s.io/v1","kind":"VolumeGroupSnapshotClass","metadata":{"name":"once"},"driver":"csi.tandem.storage","deletionPolicy":"Retain",
			"parameters":{"deletionPolicy":"Retain","freeze":"false"}}`, "{.parameters}", `{"freeze":"false"}`},
		{`{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"small"},"spec":{"storageClassName":"volumegroupsnapshottable","accessModes":["ReadWriteOnce"],
			"resources":{"requests":{"storage":"1Mi"}}}}`, "{.spec.resources.requests.storage}", "320Mi"},
	} {
		var last string
		err := lab.Until(s.t.Context(), "a policy is in force", time.Minute, 200*time.Millisecond, func() (bool, error) {
			out, err := s.c.Kubectl(s.t.Context(), try.object, "create", "--dry-run=server", "-f", "-", "-o", "jsonpath="+try.path)
			last = strings.TrimSpace(out)
			return err == nil && last == try.want, err
		})
		if err != nil {
			s.t.Fatalf("%v; last: %q, want %q", err, last, try.want)
		}
	}
}

// capacities wants the scheduler to be told of the room at each node that stores, once. The specs look that closely only at drivers with one topology key.
func (s *stand) capacities() {
	s.t.Helper()
	var want, last []string
	for n, domain := range s.domains {
		if domain != third {
			want = append(want, domain+" "+n.Name)
		}
	}
	slices.Sort(want)
	err := lab.Until(s.t.Context(), "the room for class tandem is told", time.Minute, 200*time.Millisecond, func() (bool, error) {
		out, err := s.c.Kubectl(s.t.Context(), "", "-n", namespace, "get", "csistoragecapacities",
			"-o", `jsonpath={range .items[?(@.storageClassName=="tandem")]}{.nodeTopology.matchLabels.topology\.tandem\.storage/domain} {.nodeTopology.matchLabels.topology\.tandem\.storage/node}{"\n"}{end}`)
		last = slices.Sorted(strings.Lines(out))
		for i := range last {
			last[i] = strings.TrimSpace(last[i])
		}
		return slices.Equal(last, want), err
	})
	if err != nil {
		s.t.Errorf("%v; told is of %q, want %q", err, last, want)
	}
}

// letIn lets the specs into the nodes.
func (s *stand) letIn() {
	s.t.Helper()
	if err := s.c.world.makeShellKey(); err != nil {
		s.t.Fatal(err)
	}
	for n := range s.domains {
		if err := n.shell(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// chosen are the names of those that are to be run, in an order that is always the same, with their numbers, and those of them that are to be alone.
func (s *stand) chosen(dir string) (names []string, alone map[string]bool) {
	s.t.Helper()
	all, err := s.specs(dir, "list", driverFile, "-ginkgo.dry-run", "-ginkgo.focus", "External.Storage")
	if err != nil {
		s.t.Fatal(err)
	}
	yes, err := regexp.Compile(*focusSpecs)
	if err != nil {
		s.t.Fatal(err)
	}
	no, err := regexp.Compile(*skipSpecs)
	if err != nil {
		s.t.Fatal(err)
	}
	alone = map[string]bool{}
	for _, p := range all {
		if n := p.name(); yes.MatchString(n) && (*skipSpecs == "" || !no.MatchString(n)) {
			names = append(names, n)
			alone[n] = strings.Contains(n, "[Serial]") || strings.Contains(n, "[Disruptive]")
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { // these at the end
		switch {
		case alone[a] == alone[b]:
			return strings.Compare(a, b)
		case alone[a]:
			return 1
		default:
			return -1
		}
	})
	s.t.Logf("%d of %d specs", len(names), len(all))
	return names, alone
}

// TestExternalStorage lets Kubernetes' own specs for CSI drivers loose on Tandem in two sites. What the driver says of itself is in tools/e2e/tandem.yaml; what passes,
// and what does not apply and why, in docs/reference/external-storage.md.
func TestExternalStorage(t *testing.T) {
	top, bin := programs(t)
	if err := BuildStorageTests(t.Context(), top, bin); err != nil {
		t.Fatal(err)
	}
	images, err := StorageTestImages(t.Context(), bin)
	if err != nil {
		t.Fatal(err)
	}
	lap := laps(t)
	s := withSnapshots(t, "specs", images...)
	// Nothing but Tandem runs in the third place: what a spec puts on a node is put where volumes are.
	s.must("", "taint", "node", "specs-w", "node-role.kubernetes.io/control-plane=:NoSchedule")
	s.must(classes, "create", "-f", "-")
	s.regulate()
	s.capacities()
	s.letIn()
	lap("installed")
	dir := t.TempDir()
	if err := writeDrivers(top, dir); err != nil {
		t.Fatal(err)
	}
	names, alone := s.chosen(dir)
	if *fromSpec > len(names) {
		t.Fatalf("-from %d: there are %d", *fromSpec, len(names))
	}
	r := &specRun{s: s, dir: dir, names: names, next: *fromSpec, began: time.Now(), count: map[string]int{}}
	var wg sync.WaitGroup
	for range *lanes {
		wg.Go(func() { r.lane(func(name string) bool { return !alone[name] }) })
	}
	wg.Wait()
	r.lane(func(string) bool { return true })
	t.Logf("%d specs: %v", r.next-*fromSpec, r.count)
	lap("specs run")
	if r.next < len(names) {
		t.Logf("not all: go on with -from %d", r.next)
	}
	s.nothingLeft()
	lap("nothing left")
}

// specRun hands specs out.
type specRun struct {
	s     *stand
	dir   string
	names []string
	began time.Time

	mu    sync.Mutex
	next  int
	count map[string]int // by what became of them
}

// take hands the next one out, if it is one that may be. ok = false: there is none.
func (r *specRun) take(may func(name string) bool) (number int, name string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next >= len(r.names) || !may(r.names[r.next]) || *within > 0 && time.Since(r.began) > *within {
		return 0, "", false
	}
	r.next++
	return r.next - 1, r.names[r.next-1], true
}

// lane runs one spec after the other.
func (r *specRun) lane(may func(name string) bool) {
	for {
		number, name, ok := r.take(may)
		if !ok {
			return
		}
		began := time.Now()
		its, err := r.s.specs(r.dir, fmt.Sprint(number), fileFor(name), "-ginkgo.focus", focus(name))
		var ran *spec
		for _, p := range its {
			if p.name() == name && (p.State != "skipped" || p.Failure.Message != "") { // else it was not chosen
				ran = p
			}
		}
		if ran == nil {
			r.s.t.Errorf("spec %d %s did not run: %v", number, name, err)
			ran = &spec{Leaf: name, State: "error"}
		}
		if ran.State != "passed" && ran.State != "skipped" {
			r.s.t.Errorf("spec %d %s: %s %s\n%s", number, name, ran.State, ran.Failure.Message, lab.Tail(filepath.Join(r.dir, fmt.Sprint(number)+".log"), 60))
		}
		r.done(number, ran, time.Since(began))
	}
}

// done writes down what became of a spec.
func (r *specRun) done(number int, p *spec, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count[p.State]++
	why := ""
	if p.State == "skipped" {
		why, _, _ = strings.Cut(p.Failure.Message, "\n")
	}
	line := fmt.Sprintf("%d\t%s\t%.0f\t%s\t%s\n", number, p.State, took.Seconds(), p.short(), why)
	r.s.t.Log(strings.TrimSpace(line))
	if *specLog == "" {
		return
	}
	f, err := os.OpenFile(*specLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(line)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		r.s.t.Error(err)
	}
}

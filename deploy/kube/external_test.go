//go:build kube

package kube

import (
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

// Which of Kubernetes' specs for CSI drivers TestExternalStorage runs. All of them are some hours.
var (
	focusSpecs = flag.String("focus", ".", "specs that TestExternalStorage runs, a regular expression")
	skipSpecs  = flag.String("skip", notHere, "specs that it does not run, a regular expression; the default are those that this machine has not what they want for")
	fromSpec   = flag.Int("from", 0, "number of the spec that it begins with, in its log")
	within     = flag.Duration("within", 0, "it begins no further specs after so long, and says with which to go on; 0: all")
	lanes      = flag.Int("lanes", 3, "so many specs at the same time, but for those that are to be alone")
	specLog    = flag.String("specs", "", "file to which it adds a line for each spec: number, what became of it, seconds, name")
)

// notHere are specs for what no CSI driver has of this kind (Windows, volumes in pods, volumes that the test makes by itself, ext3), or that want a way into the nodes by
// ssh, 256 volumes on a node, or the images of a volume populator.
const notHere = `any volume data source|\[Feature:Windows\]|Inline-volume|CSI Ephemeral|Pre-provisioned PV|\(ext3\)|\[Disruptive\]|volumeLimits`

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

// What the driver says of itself, in two files: specs that want two nodes look for them in one topology if there are any, and here each has one node.
const (
	driverFile   = "driver.yaml"
	anywhereFile = "anywhere.yaml" // without topologies
)

func writeDrivers(top, dir string) error {
	data, err := os.ReadFile(filepath.Join(top, "deploy", "kube", "tools", "e2e", "tandem.yaml"))
	if err != nil {
		return err
	}
	without := regexp.MustCompile(`(?m)^ *TopologyKeys: .*\n`).ReplaceAll(data, nil)
	if len(without) == len(data) {
		return errors.New("tandem.yaml has no TopologyKeys")
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, driverFile), data, 0o644), os.WriteFile(filepath.Join(dir, anywhereFile), without, 0o644))
}

// specs runs the program of the specs, and returns those of its report.
func (s *stand) specs(dir, id, driver string, args ...string) ([]*spec, error) {
	report := filepath.Join(dir, id+".json")
	argv := append(s.c.world.space.Inside(s.c.bin("e2e.test"), "-kubeconfig", s.c.conf("admin"), "-kubectl-path", s.c.bin("kubectl"),
		"-storage.testdriver", filepath.Join(dir, driver), "-provider", "skeleton", "-minStartupPods", "0", "-ginkgo.json-report", report, "-ginkgo.timeout", "1h", "-ginkgo.no-color"), args...)
	cmd := exec.CommandContext(s.t.Context(), argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir)
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
			alone[n] = strings.Contains(n, "[Serial]")
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
		driver := driverFile
		if strings.Contains(name, "different node") {
			driver = anywhereFile
		}
		its, err := r.s.specs(r.dir, fmt.Sprint(number), driver, "-ginkgo.focus", focus(name))
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

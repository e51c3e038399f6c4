package tandem_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/tandem-storage/tandem/"

// arrows are the imports that must not be, with the reason. From and to are
// import paths below the module (a trailing slash means the whole folder),
// or full paths of other modules. Tests are held to it too, except where
// the rule says otherwise.
var arrows = []struct {
	from, to string
	except   []string // importers below from that may
	tests    bool     // tests may
	why      string
}{
	// Folders of ours: all arrows point downward.
	{from: "datapath/", to: "replication", why: "local block I/O knows nothing of replication; it is tested without peers"},
	{from: "datapath/", to: "kvdb", why: "local block I/O knows nothing of the cluster"},
	{from: "datapath/", to: "clusterdomain", why: "local block I/O knows nothing of the cluster"},
	{from: "datapath/", to: "volume", why: "local block I/O knows nothing of the catalogue"},
	{from: "replication/", to: "clusterdomain", tests: true, why: "replication declares what it needs from the cluster; cmd/internal/daemon supplies an adapter"},
	{from: "replication/", to: "kvdb", tests: true, why: "replication asks for compare-and-set through its own interface, so that it can be simulated without a store"},
	{from: "replication/", to: "volume/", tests: true, why: "the catalogue stands above replication"},
	{from: "kvdb/", to: "datapath", why: "the store knows no block devices"},
	{from: "kvdb/", to: "replication", why: "the store knows none of its users"},
	{from: "kvdb/", to: "clusterdomain", why: "the store knows none of its users"},
	{from: "kvdb/", to: "volume", why: "the store knows none of its users"},
	{from: "clusterdomain/", to: "datapath", why: "domains are decided from the kvdb alone"},
	{from: "clusterdomain/", to: "volume", why: "the catalogue stands above the domains; the daemon hands the replicas' states in"},
	{from: "audit/", to: "clusterdomain", why: "the audit trail knows none of those who write it"},
	{from: "audit/", to: "volume", why: "the audit trail knows none of those who write it"},
	{from: "audit/", to: "replication", why: "the audit trail knows none of those who write it"},
	{from: "datapath/", to: "audit", why: "I/O waits for no record"},
	{from: "replication/", to: "audit", why: "I/O waits for no record"},
	{from: "volume/", to: "datapath", why: "the catalogue speaks of volumes, not of files"},
	{from: "datapath/", to: "cmd", why: "nothing imports the programs"},
	{from: "replication/", to: "cmd", why: "nothing imports the programs"},
	{from: "kvdb/", to: "cmd", why: "nothing imports the programs"},
	{from: "clusterdomain/", to: "cmd", why: "nothing imports the programs"},
	{from: "volume/", to: "cmd", why: "nothing imports the programs"},
	{from: "csi/", to: "datapath", why: "the CSI service reaches volumes only through the daemon's API"},
	{from: "", to: "deploy", except: []string{"deploy/", "bench/"}, why: "programs around the product are no part of it"},
	{from: "", to: "bench", except: []string{"bench/"}, why: "programs around the product are no part of it"},

	// Doors: one package for each library, so that it can be changed or done without.
	{from: "", to: "go.etcd.io/etcd/client/v3", except: []string{"kvdb/etcdkv"}, why: "the etcd client has one door: kvdb/etcdkv"},
	{from: "", to: "github.com/hashicorp/raft", except: []string{"kvdb/raftkv"}, why: "raft has one door: kvdb/raftkv"},
	{from: "", to: "github.com/pkg/xattr", except: []string{"datapath/backing"}, why: "extended attributes have one door: datapath/backing"},
	{from: "", to: "github.com/hanwen/go-fuse/v2", except: []string{"datapath/frontend/fuseloop"}, why: "FUSE has one door: datapath/frontend/fuseloop"},
	{from: "", to: "github.com/container-storage-interface/spec", except: []string{"csi", "deploy/e2e"}, why: "the CSI specification has one door: csi"},
	{from: "", to: "k8s.io/client-go", except: []string{"nodeloss", "rollout", "cmd/tandem-controller"}, why: "Kubernetes is reached by tandem-controller alone: nodeloss and rollout"},
	{from: "", to: "k8s.io/kubelet", except: []string{"cmd/internal/kubelet"}, why: "the kubelet's registration has one door: cmd/internal/kubelet"},
	{from: "", to: "github.com/spf13/cobra", except: []string{"cmd/tandemctl", "cmd/tandemd"}, why: "the command line stays in the programs"},

	// Leaf packages do not log: they return errors and events.
	{from: "datapath/block", to: "go.uber.org/zap", why: "leaf packages do not log"},
	{from: "datapath/interval", to: "go.uber.org/zap", why: "leaf packages do not log"},
	{from: "replication/core", to: "go.uber.org/zap", why: "leaf packages do not log"},
	{from: "replication/wire", to: "go.uber.org/zap", why: "leaf packages do not log"},
	{from: "clusterdomain/arbiter", to: "go.uber.org/zap", why: "leaf packages do not log"},
}

// apis are the packages that csi may import of what is not its own.
var apis = []string{"volume/volumepb", "clusterdomain/clusterdomainpb", "internal/loopdev"}

func TestCSIKnowsTheAPIOnly(t *testing.T) {
	for _, p := range mustPackages(t) {
		from, _ := ours(p.ImportPath)
		if !under(from, "csi") {
			continue
		}
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if o, isOurs := ours(imp); isOurs && !under(o, "csi") && !slices.Contains(apis, o) {
				t.Errorf("%s imports %s: the CSI service knows the daemon's API only: %v", from, o, apis)
			}
		}
	}
}

// pure are packages whose behaviour must follow from their inputs alone, with
// everything of ours that they may import. They must not import impure.
var pure = map[string][]string{
	"replication/core":      {"replication", "datapath/invariant", "datapath/block", "datapath/interval"},
	"clusterdomain/arbiter": {"clusterdomain", "datapath/invariant"},
}

// impure is what makes a package depend on when and where it runs.
var impure = map[string]string{
	"context":      "nothing in it waits",
	"math/rand":    "randomness is an input",
	"math/rand/v2": "randomness is an input",
	"crypto/rand":  "randomness is an input",
	"net":          "messages are returned, not sent",
	"os":           "I/O is returned, not done",
	"sync":         "one caller at a time",
	"sync/atomic":  "one caller at a time",
	"syscall":      "I/O is returned, not done",
	"time":         "time is an input: abstract ticks",
}

// pkg is what go list tells of a package.
type pkg struct {
	ImportPath   string
	Dir          string
	Name         string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// packages returns every package of the module.
var packages = sync.OnceValues(func() ([]pkg, error) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Name,GoFiles,Imports,TestImports,XTestImports", "./...").Output()
	if err != nil {
		return nil, err
	}
	var ps []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return ps, nil
		} else if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
})

func mustPackages(t *testing.T) []pkg {
	t.Helper()
	ps, err := packages()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	if len(ps) < 5 {
		t.Fatalf("go list knows only %d packages", len(ps))
	}
	return ps
}

// under reports whether path is of rule: the package itself or below it. "" is everything.
func under(path, rule string) bool {
	rule = strings.TrimSuffix(rule, "/")
	return rule == "" || path == rule || strings.HasPrefix(path, rule+"/")
}

// ours returns path below the module.
func ours(path string) (string, bool) {
	if path+"/" == module {
		return "", true
	}
	return strings.CutPrefix(path, module)
}

func TestArrows(t *testing.T) {
	for _, p := range mustPackages(t) {
		from, ok := ours(p.ImportPath)
		if !ok {
			t.Fatalf("package %s is not of module %s", p.ImportPath, module)
		}
		for _, r := range arrows {
			if !under(from, r.from) || slices.ContainsFunc(r.except, func(e string) bool { return under(from, e) }) {
				continue
			}
			imports := p.Imports
			if !r.tests {
				imports = slices.Concat(p.Imports, p.TestImports, p.XTestImports)
			}
			for _, imp := range imports {
				to := imp
				if o, ok := ours(imp); ok {
					to = o
				}
				if under(to, r.to) && !under(from, r.to) {
					t.Errorf("%s imports %s: %s", from, to, r.why)
				}
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	for _, p := range mustPackages(t) {
		from, _ := ours(p.ImportPath)
		allowed, ok := pure[from]
		if !ok {
			continue
		}
		for _, imp := range p.Imports {
			if why, bad := impure[imp]; bad {
				t.Errorf("%s imports %s: %s", from, imp, why)
			}
			if o, isOurs := ours(imp); isOurs && !slices.Contains(allowed, o) {
				t.Errorf("%s imports %s: a pure package imports only %v", from, o, allowed)
			} else if !isOurs && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("%s imports %s: a pure package imports the standard library and ours only", from, imp)
			}
		}
	}
}

package rpcstatus

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// exempt are the sentinels that need no row, and why.
var exempt = map[string]string{
	"kvdb/raftkv.ErrMemberLost":     raftkvWhy,
	"kvdb/raftkv.ErrClusterExists":  raftkvWhy,
	"kvdb/raftkv.ErrMemberExists":   raftkvWhy,
	"kvdb/raftkv.ErrMemberNotFound": raftkvWhy,
	"kvdb/raftkv.ErrMajority":       raftkvWhy,

	"csi/mount.ErrBusy":     csiWhy,
	"csi/mount.ErrCommand":  csiWhy,
	"csi/mount.ErrNotZero":  csiWhy,
	"csi/opgate.ErrPending": csiWhy,

	"csi/freeze.ErrBusy":  freezeWhy,
	"csi/freeze.ErrEnded": freezeWhy,
	"csi/freeze.ErrSlow":  freezeWhy,
	"csi/mount.ErrFrozen": freezeWhy,

	"internal/loopdev.ErrNoControl": loopWhy,
	"internal/loopdev.ErrRace":      loopWhy,

	"replication/transport/pki.ErrFile": "pki runs inside tandemctl and is asked by no request",
}

const csiWhy = "the CSI services answer with statuses of their own; the daemon's API knows nothing of them"

const freezeWhy = "between nodes it is volume.ErrNotFrozen, and it becomes the words in a snapshot's record"

const loopWhy = "fuseloop gives them other names, and csi/mount has them in a process of its own"

const raftkvWhy = "of the daemon's start, or the daemon gives it another name; and tandemctl, which shares the table, must not link raft"

var sentinelName = regexp.MustCompile(`^Err[A-Z]`)

// sentinels walks the source tree and returns every "folder.ErrX".
func sentinels(t *testing.T) map[string]bool {
	t.Helper()
	const root = "../../.."
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if n := d.Name(); n == ".git" || n == "testdata" || n == "deploy" {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, ".pb.go"):
			return nil
		}
		src, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range src.Decls {
			gd, ok := decl.(*ast.GenDecl)
			if !ok || gd.Tok != token.VAR {
				continue
			}
			for _, spec := range gd.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					if sentinelName.MatchString(name.Name) {
						found[filepath.Dir(strings.TrimPrefix(file, root+"/"))+"."+name.Name] = true
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Every exported sentinel of the tree is in the table or exempt with a reason, and nothing else is.
func TestEverySentinelHasACode(t *testing.T) {
	found := sentinels(t)
	if len(found) < 30 {
		t.Fatalf("found only %d sentinels: the walk is broken", len(found))
	}
	rows := map[string]bool{}
	for _, r := range table {
		if rows[r.name] {
			t.Errorf("%s has two rows", r.name)
		}
		rows[r.name] = true
		if !found[r.name] {
			t.Errorf("%s is in the table and not in the source", r.name)
		}
		// The name stands for the variable: its text begins with the same package, and with
		// the whole folder where two packages are called alike.
		folder, _, _ := strings.Cut(r.name, ".")
		pkg := path.Base(folder)
		for name := range found {
			if other, _, _ := strings.Cut(name, "."); other != folder && path.Base(other) == pkg {
				pkg = folder
			}
		}
		if !strings.HasPrefix(r.err.Error(), pkg+": ") {
			t.Errorf("%s says %q: a sentinel's text begins with its package, %q", r.name, r.err, pkg)
		}
	}
	var missing []string
	for name := range found {
		_, ex := exempt[name]
		switch {
		case ex && rows[name]:
			t.Errorf("%s is in the table and exempt", name)
		case !ex && !rows[name]:
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	if len(missing) > 0 {
		t.Errorf("no row for:\n\t%s", strings.Join(missing, "\n\t"))
	}
	for name, why := range exempt {
		if !found[name] || why == "" {
			t.Errorf("the exemption of %s is stale or has no reason", name)
		}
	}
}

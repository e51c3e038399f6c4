package tandem_test

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// words are not said, because the glossary has another (docs/glossary.md). Only those that cannot mean anything else in
// this field are listed; for the rest there is the reader.
var words = []struct {
	not    *regexp.Regexp
	say    string
	except []string // files or folders where the word has its other meaning
}{
	{word(`slaves?`), "peer or replica", nil},
	{word(`masters?`), "coordinator", []string{"cmd/tandemctl", "deploy/vm", "deploy/kube"}}, // of mountinfo(5), ip-link(8) and Kubernetes' system:masters
	{word(`(black|white)list\w*`), "deny list, allow list", nil},
	{word(`LUNs?`), "volume", nil},
	{word(`split-?brain(ed)?\s+resolv\w+`), "force", nil},
	{word(`rebuil(d|t|ding) (of )?(the |a )?replica`), "resync", nil},
	{word(`mirror leg`), "replica", nil},
	{word(`journal`), "activity log", []string{"docs/", "bench/", "datapath/backing/", "deploy/"}}, // of XFS and ext4
	{regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`), "do it, or write it into docs/limitations.md", nil},
}

func word(re string) *regexp.Regexp { return regexp.MustCompile(`(?i)\b(` + re + `)\b`) }

// maxLines is the longest that a source file may be: one purpose, read in one go.
const maxLines = 700

// sources returns the files of the tree that people write, of the given kinds.
func sources(t *testing.T, exts ...string) []string {
	t.Helper()
	out, err := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Skipf("not a git work tree: %v", err)
	}
	var files []string
	for _, f := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if _, err := os.Stat(f); err != nil || strings.HasSuffix(f, ".pb.go") {
			continue
		}
		if slices.Contains(exts, filepath.Ext(f)) && f != "words_test.go" {
			files = append(files, f)
		}
	}
	return files
}

func TestWords(t *testing.T) {
	for _, f := range sources(t, ".go", ".proto", ".md", ".yaml", ".sh") {
		data, err := os.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		line := 0
		s := bufio.NewScanner(data)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			line++
			for _, w := range words {
				if m := w.not.FindString(s.Text()); m != "" && !slices.ContainsFunc(w.except, func(e string) bool { return under(f, e) }) {
					t.Errorf("%s:%d says %q; say %s", f, line, m, w.say)
				}
			}
		}
		if err := s.Err(); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		data.Close()
	}
}

func TestFileLength(t *testing.T) {
	for _, f := range sources(t, ".go") {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(data), "\n"); n > maxLines && !strings.HasSuffix(f, "_test.go") {
			t.Errorf("%s has %d lines, more than %d: split it by purpose", f, n, maxLines)
		}
	}
}

// TestPackageDoc wants exactly one doc comment in each package, "Package x ..." or "Command x ...".
func TestPackageDoc(t *testing.T) {
	for _, p := range mustPackages(t) {
		var docs []string
		handWritten := 0
		for _, name := range p.GoFiles {
			file := filepath.Join(p.Dir, name)
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if ast.IsGenerated(f) {
				continue
			}
			handWritten++
			if f.Doc == nil {
				continue
			}
			docs = append(docs, name)
			want := "Package " + p.Name + " "
			if p.Name == "main" {
				want = "Command " + filepath.Base(p.Dir) + " "
			}
			if text := strings.Join(strings.Fields(f.Doc.Text()), " "); !strings.HasPrefix(text, want) {
				t.Errorf("%s: the package comment begins %.40q, want %q", file, text, want)
			}
		}
		if handWritten > 0 && len(docs) != 1 {
			t.Errorf("%s has %d package comments %v, want one", p.ImportPath, len(docs), docs)
		}
	}
}

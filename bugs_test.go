package tandem_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The tables in docs/testing.md that say which test holds what are worth something only while the tests are there.

const coreTests = "replication/core"

// table returns the rows of the first table below a heading of docs/testing.md, without its head.
func table(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile("docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	_, below, ok := strings.Cut(string(text), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("docs/testing.md has no %q", heading)
	}
	for _, line := range strings.Split(below, "\n") {
		switch {
		case strings.HasPrefix(line, "|"):
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		case len(rows) > 0 || strings.HasPrefix(line, "#"):
			return rows[min(2, len(rows)):]
		}
	}
	return rows
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// spans are the words of a cell that are set as code and match a pattern.
func spans(cell, pattern string) (words []string) {
	re := regexp.MustCompile(pattern)
	for _, m := range codeSpan.FindAllStringSubmatch(cell, -1) {
		if re.MatchString(m[1]) {
			words = append(words, m[1])
		}
	}
	return words
}

// mutantNames are the rows of the mutation test.
func mutantNames(t *testing.T) (names []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(coreTests, "mutants_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\t\{"([a-z_]+)", "`).FindAllStringSubmatch(string(text), -1) {
		names = append(names, m[1])
	}
	return names
}

// TestTwentyBugs holds the table of the bugs of section 17 of the protocol against the tests that it names.
func TestTwentyBugs(t *testing.T) {
	var tests []string
	for _, f := range sources(t, ".go") {
		if text, err := os.ReadFile(f); err == nil && strings.HasSuffix(f, "_test.go") {
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
				tests = append(tests, m[1])
			}
		}
	}
	scenarios, err := filepath.Glob(filepath.Join(coreTests, "testdata", "bug-*"))
	if err != nil {
		t.Fatal(err)
	}
	mutants, rows := mutantNames(t), table(t, "## The twenty bugs")
	if len(rows) != 20 {
		t.Fatalf("%d rows", len(rows))
	}
	for i, row := range rows {
		if row[0] != fmt.Sprint(i+1) || len(row) != 4 {
			t.Fatalf("row %d is %q", i+1, row)
		}
		named := spans(row[2], `^bug-\d\d-`)
		for _, s := range named {
			f := filepath.Join(coreTests, "testdata", s)
			if k := slices.Index(scenarios, f); k < 0 || !strings.HasPrefix(s, fmt.Sprintf("bug-%02d-", i+1)) {
				t.Errorf("bug %d: there is no scenario %s of it", i+1, s)
			} else {
				scenarios = slices.Delete(scenarios, k, k+1)
			}
		}
		for _, name := range spans(row[2], `^Test`) {
			named = append(named, name)
			if !slices.Contains(tests, name) {
				t.Errorf("bug %d: there is no test %s", i+1, name)
			}
		}
		for _, name := range spans(row[3], `^[a-z]+(_[a-z]+)+$`) {
			if !slices.Contains(mutants, name) {
				t.Errorf("bug %d: there is no mutant %s", i+1, name)
			}
		}
		if len(named) == 0 && !strings.HasPrefix(row[2], "does not apply") {
			t.Errorf("bug %d has no scenario", i+1)
		}
	}
	for _, s := range scenarios {
		t.Errorf("%s is not in the table", s)
	}
}

// TestModelMutations wants a mutant of the core for each mutation of the protocol's Python model.
func TestModelMutations(t *testing.T) {
	text, err := os.ReadFile("docs/design/protocol_model.py")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(text), "every one must yield a violation):")
	list, _, _ = strings.Cut(list, "(lossy_authority")
	model := strings.Fields(list)
	if len(model) != 20 {
		t.Fatalf("the model has mutations %q", model)
	}
	mutants, rows := mutantNames(t), table(t, "### The mutations of the Python model")
	for _, m := range model {
		k := slices.IndexFunc(rows, func(row []string) bool { return row[0] == "`"+m+"`" })
		if k < 0 {
			t.Errorf("no row for %s", m)
			continue
		}
		ours := spans(rows[k][1], `^[a-z_]+$`)
		if len(ours) == 0 {
			t.Errorf("%s has no mutant", m)
		}
		for _, name := range ours {
			if !slices.Contains(mutants, name) {
				t.Errorf("%s: there is no mutant %s", m, name)
			}
		}
	}
}

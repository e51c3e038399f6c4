package volume

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"strings"
	"testing"
)

// The core is told the time by one clock, which nobody sets: now. The wall clock jumps, so it is only for what people
// are shown: the fields of Status whose names end in Since.
func TestWallClockIsForPeople(t *testing.T) {
	pkgs, err := parser.ParseDir(token.NewFileSet(), ".", func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }, 0) //nolint:staticcheck // build tags do not matter here
	if err != nil {
		t.Fatal(err)
	}
	wall, shown, boot := 0, 0, 0
	is := func(e ast.Node, pkg, name string) bool {
		s, ok := e.(*ast.SelectorExpr)
		if !ok || s.Sel.Name != name {
			return false
		}
		id, ok := s.X.(*ast.Ident)
		return ok && id.Name == pkg
	}
	since := func(e ast.Expr) bool {
		s, ok := e.(*ast.SelectorExpr)
		return ok && strings.HasSuffix(s.Sel.Name, "Since")
	}
	calls := func(e ast.Expr) bool {
		c, ok := e.(*ast.CallExpr)
		return ok && is(c.Fun, "time", "Now")
	}
	ast.Inspect(pkgs["volume"], func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if since(n.Lhs[0]) && calls(n.Rhs[0]) {
				shown++
			}
		case *ast.CallExpr:
			if is(n.Fun, "time", "Since") && since(n.Args[0]) {
				shown++
			}
		case *ast.KeyValueExpr:
			if k, ok := n.Key.(*ast.Ident); ok && calls(n.Value) && strings.HasSuffix(k.Name, "Since") {
				shown++
			}
		case *ast.SelectorExpr:
			switch {
			case is(n, "time", "Now"), is(n, "time", "Since"):
				wall++
			case is(n, "unix", "CLOCK_BOOTTIME"):
				boot++
			case is(n, "unix", "CLOCK_REALTIME"), is(n, "unix", "CLOCK_MONOTONIC"), is(n, "time", "Until"):
				t.Errorf("%s is used", n.Sel.Name)
			}
		}
		return true
	})
	if wall != shown || boot != 1 {
		t.Errorf("the wall clock is read %d times, %d of them for a Status; CLOCK_BOOTTIME in %d places", wall, shown, boot)
	}
}

package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write config.sample.yaml and docs/reference/config.md anew")

const (
	samplePath    = "../../../deploy/manifests/config.sample.yaml"
	referencePath = "../../../docs/reference/config.md"
)

// fieldDoc is one key of the file as the source describes it.
type fieldDoc struct {
	key  string // last part
	doc  string
	typ  reflect.Type
	path string
	sub  []fieldDoc // of a struct, or of a list's elements
	list bool
}

// docTree joins the comments of config.go with the types.
func docTree(t *testing.T) []fieldDoc {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	comments := map[string]string{} // Type.Field -> comment
	ast.Inspect(file, func(n ast.Node) bool {
		ts, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if st, ok := ts.Type.(*ast.StructType); ok {
			for _, f := range st.Fields.List {
				comments[ts.Name.Name+"."+f.Names[0].Name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
			}
		}
		return true
	})
	var walk func(typ reflect.Type, path string) []fieldDoc
	walk = func(typ reflect.Type, path string) []fieldDoc {
		var out []fieldDoc
		for i, key := range keysOf(typ) {
			f := typ.Field(i)
			d := fieldDoc{key: key, doc: comments[typ.Name()+"."+f.Name], typ: f.Type, path: join(path, key)}
			if d.doc == "" {
				t.Errorf("%s.%s has no comment", typ.Name(), f.Name)
			}
			switch {
			case f.Type.Kind() == reflect.Struct:
				d.sub = walk(f.Type, d.path)
			case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
				d.list, d.sub = true, walk(f.Type.Elem(), d.path+"[]")
			}
			out = append(out, d)
		}
		return out
	}
	return walk(reflect.TypeFor[Config](), "")
}

func limitOf(path string) *Limit {
	i := slices.IndexFunc(limits, func(l Limit) bool { return l.Key == path })
	if i < 0 {
		return nil
	}
	return &limits[i]
}

// sampleValue writes v as YAML.
func sampleValue(v reflect.Value) string {
	s := valueText(v)
	if v.Kind() == reflect.String && s == "" {
		return `""`
	}
	return s
}

func sampleText(t *testing.T) string {
	var b strings.Builder
	b.WriteString("# The configuration of tandemd: every key with its default. tandemd starts with these values\n" +
		"# when it is given no file. Unknown keys are errors; durations and sizes have units.\n" +
		"# Generated from cmd/internal/config: go test ./cmd/internal/config -update\n\n")
	var write func(docs []fieldDoc, v reflect.Value, indent string)
	write = func(docs []fieldDoc, v reflect.Value, indent string) {
		for i, d := range docs {
			if indent == "" && i > 1 {
				b.WriteString("\n")
			}
			doc := d.doc
			if l := limitOf(d.path); l != nil {
				doc += fmt.Sprintf(" %s to %s: %s.", l.Text(l.Min), l.Text(l.Max), l.Why)
			}
			comment(&b, indent+"# ", doc)
			switch {
			case d.list:
				fmt.Fprintf(&b, "%s%s: []\n", indent, d.key)
				for j, e := range d.sub {
					dash := "  "
					if j == 0 {
						dash = "- "
					}
					comment(&b, indent+"#     # ", e.doc)
					fmt.Fprintf(&b, "%s#   %s%s: %s\n", indent, dash, e.key, sampleValue(reflect.Zero(e.typ)))
				}
			case d.sub != nil:
				fmt.Fprintf(&b, "%s%s:\n", indent, d.key)
				write(d.sub, v.Field(i), indent+"  ")
			default:
				fmt.Fprintf(&b, "%s%s: %s\n", indent, d.key, sampleValue(v.Field(i)))
			}
		}
	}
	write(docTree(t), reflect.ValueOf(Default()).Elem(), "")
	return b.String()
}

// comment writes text in lines of at most 110 bytes.
func comment(b *strings.Builder, prefix, text string) {
	line := prefix
	for _, w := range strings.Fields(text) {
		if len(line)+len(w) > 110 {
			b.WriteString(strings.TrimRight(line, " ") + "\n")
			line = prefix
		}
		line += w + " "
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}

func referenceText(t *testing.T) string {
	var b strings.Builder
	b.WriteString(`# Configuration of tandemd

<!-- Generated from cmd/internal/config: go test ./cmd/internal/config -update -->

One YAML file, named by ` + "`tandemd --config FILE`" + `; every key is optional but ` + "`apiVersion` and `kind`" + `. Without a file
the defaults start a lone node: embedded kvdb with one member, loopback only, no TLS, a pool under ` + "`dataDir`" + `.
[config.sample.yaml](../../deploy/manifests/config.sample.yaml) has every key with its default.

* The order is: defaults, then the file, then the flags ` + "`--node-id` and `--log-level`" + `.
* An unknown key, a key that is there twice, and a value of the wrong kind are errors. All errors are reported at once, with their lines.
* Durations are written as ` + "`500ms`, `3s`, `1m30s`" + `; sizes with a binary unit, ` + "`64Ki`, `8Mi`, `2Gi`" + `. A number without a unit is an error.
* The effective configuration is logged once at start, without secrets.

| key | type | default | meaning |
|---|---|---|---|
`)
	var write func(docs []fieldDoc, v reflect.Value)
	write = func(docs []fieldDoc, v reflect.Value) {
		for i, d := range docs {
			def := "`" + sampleValue(v.Field(i)) + "`"
			typ := typeWord(d.typ)
			if d.sub != nil && !d.list {
				def = ""
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.path, typ, def, d.doc)
			switch {
			case d.list:
				write(d.sub, reflect.Zero(d.typ.Elem()))
			case d.sub != nil:
				write(d.sub, v.Field(i))
			}
		}
	}
	write(docTree(t), reflect.ValueOf(Default()).Elem())
	b.WriteString("\n## Ranges\n\n| key | least | most | default | unit | why |\n|---|---|---|---|---|---|\n")
	for _, l := range Limits() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", l.Key, l.Text(l.Min), l.Text(l.Max), l.Text(l.Default), l.Unit, l.Why)
	}
	fmt.Fprintf(&b, `
Relations that are checked as well:

* `+"`suspectTimeout` >= %d x `beatInterval`"+`
* `+"`opTimeout` >= `suspectTimeout`"+`
* `+"`evictSlow` is 0, or 20ms and more and below `opTimeout`"+`
* `+"`leaseGrant` >= `leaseTime` and 1 %% more; `sealTimeout` >= `leaseGrant`"+`
* `+"`stallTimeout` >= `opTimeout` + `sealTimeout`"+`
* every address to listen on is loopback while `+"`tls.insecure`"+` is true
* `+"`kvdb.raft.members`"+` lists this node exactly if `+"`kvdb.raft.member`"+` is true, and has not two elements
`, beatsToSuspect)
	return b.String()
}

func typeWord(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[Size]():
		return "size"
	case t.String() == "time.Duration":
		return "duration"
	case t.Kind() == reflect.Struct:
		return "block"
	case t.Kind() == reflect.Slice:
		return "list"
	case t.Kind() == reflect.Map:
		return "texts by name"
	case t.Kind() == reflect.String:
		return "text"
	default:
		return t.Kind().String()
	}
}

func golden(t *testing.T, path, want string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the source says; run go test ./cmd/internal/config -update", path)
	}
}

func TestSampleIsGenerated(t *testing.T)    { golden(t, samplePath, sampleText(t)) }
func TestReferenceIsGenerated(t *testing.T) { golden(t, referencePath, referenceText(t)) }

// The sample must stand for the defaults, and every key in it must have a comment.
func TestSampleEqualsDefaults(t *testing.T) {
	data, err := os.ReadFile(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	fromSample, err := Parse(samplePath, data, Flags{NodeID: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	fromNothing, err := Load("", Flags{NodeID: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(fromSample, fromNothing) {
		t.Errorf("the sample gives\n%v\nthe defaults are\n%v", fromSample.Effective(), fromNothing.Effective())
	}
	raw := Default()
	d := &decoder{file: samplePath, lines: map[string]int{}}
	d.decode(data, raw)
	var missing []string
	flatten("", reflect.ValueOf(Default()).Elem(), func(key string, _ reflect.Value) {
		if d.lines[key] == 0 {
			missing = append(missing, key)
		}
	})
	if len(missing) > 0 {
		t.Errorf("the sample lacks %v", missing)
	}
	lines := strings.Split(string(data), "\n")
	for key, line := range d.lines {
		if above := strings.TrimSpace(lines[line-2]); !strings.HasPrefix(above, "#") {
			t.Errorf("%s (line %s) has no comment above it", key, strconv.Itoa(line))
		}
	}
}

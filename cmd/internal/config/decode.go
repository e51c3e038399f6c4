package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds the file, in bytes: a configuration is a few kilobytes.
const maxFile = 1 << 20

// maxListLen bounds every list of the file.
const maxListLen = 1024

// decoder writes the nodes of a file into a Config and collects what is wrong
// with them. It is stricter than yaml.Decoder: every unknown key is reported, with its path,
// numbers need units, and there are no anchors, tags or merge keys.
type decoder struct {
	file  string
	lines map[string]int // key path -> line, of every key in the file
	errs  Errors
}

func (d *decoder) fail(n *yaml.Node, key, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.file, Line: n.Line, Key: key, Msg: fmt.Sprintf(format, args...)})
}

// decode reads data into c, over what c holds.
func (d *decoder) decode(data []byte, c *Config) {
	root := &yaml.Node{Line: 1}
	if len(data) > maxFile {
		d.fail(root, "", "the file is larger than %v", Size(maxFile))
		return
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		d.fail(root, "", "the file is empty: it must begin with apiVersion: %s and kind: %s", APIVersion, Kind)
		return
	} else if err != nil {
		d.errs = append(d.errs, syntaxError(d.file, err))
		return
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		d.fail(root, "", "more than one YAML document, or text behind the end of the first")
		return
	}
	d.value(doc.Content[0], "", reflect.ValueOf(c).Elem())
	for _, head := range []string{"apiVersion", "kind"} {
		if _, ok := d.lines[head]; !ok && len(d.errs) == 0 {
			d.fail(root, head, "is missing: the file must begin with apiVersion: %s and kind: %s", APIVersion, Kind)
		}
	}
}

// syntaxError takes the line out of the parser's "yaml: line 3: ..." where it has one.
func syntaxError(file string, err error) *Error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	e := &Error{File: file, Msg: "not YAML: " + msg}
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		num, text, ok := strings.Cut(rest, ": ")
		if line, aerr := strconv.Atoi(num); ok && aerr == nil {
			e.Line, e.Msg = line, "not YAML: "+text
		}
	}
	return e
}

func (d *decoder) value(n *yaml.Node, key string, v reflect.Value) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fail(n, key, "anchors and aliases are not supported: write the value out")
		return
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(n, key, "tags are not supported: write the value without %q", n.Tag)
		return
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return // "key:" with nothing behind it keeps the default
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, key, v)
	case reflect.Slice:
		d.list(n, key, v)
	case reflect.Map:
		d.texts(n, key, v)
	default:
		if n.Kind != yaml.ScalarNode {
			d.fail(n, key, "is a %s, want %s", kindName(n), typeName(v.Type()))
			return
		}
		d.scalar(n, key, v)
	}
}

func (d *decoder) mapping(n *yaml.Node, key string, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, key, "is a %s, want keys and values", kindName(n))
		return
	}
	fields := keysOf(v.Type())
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, val := n.Content[i], n.Content[i+1]
		path := join(key, k.Value)
		idx := slices.Index(fields, k.Value)
		switch {
		case k.Kind != yaml.ScalarNode || idx < 0:
			d.fail(k, path, "unknown key%s", suggest(k.Value, fields))
		case seen[k.Value]:
			d.fail(k, path, "is there twice")
		default:
			seen[k.Value] = true
			d.lines[path] = k.Line
			d.value(val, path, v.Field(idx))
		}
	}
}

func (d *decoder) list(n *yaml.Node, key string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, key, "is a %s, want a list", kindName(n))
		return
	}
	if len(n.Content) > maxListLen {
		d.fail(n, key, "has %d elements, at most %d are allowed", len(n.Content), maxListLen)
		return
	}
	if len(n.Content) == 0 {
		v.SetZero()
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, e := range n.Content {
		path := fmt.Sprintf("%s[%d]", key, i)
		d.lines[path] = e.Line
		d.value(e, path, out.Index(i))
	}
	v.Set(out)
}

// texts reads a map of texts, whatever its keys are.
func (d *decoder) texts(n *yaml.Node, key string, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, key, "is a %s, want keys and values", kindName(n))
		return
	}
	if len(n.Content) == 0 {
		v.SetZero()
		return
	}
	out := map[string]string{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, val := n.Content[i], n.Content[i+1]
		path := join(key, k.Value)
		d.lines[path] = k.Line
		if _, twice := out[k.Value]; twice {
			d.fail(k, path, "is there twice")
			continue
		}
		var text string
		if k.Kind != yaml.ScalarNode {
			d.fail(k, key, "has a %s for a key, want text", kindName(k))
			continue
		}
		d.value(val, path, reflect.ValueOf(&text).Elem())
		out[k.Value] = text
	}
	v.Set(reflect.ValueOf(out))
}

func (d *decoder) scalar(n *yaml.Node, key string, v reflect.Value) {
	bad := func() { d.fail(n, key, "%q is not %s", n.Value, typeName(v.Type())) }
	switch v.Interface().(type) {
	case time.Duration:
		if dur, err := time.ParseDuration(n.Value); err == nil {
			v.SetInt(int64(dur))
		} else {
			bad()
		}
		return
	case Size:
		if s, err := ParseSize(n.Value); err == nil {
			v.SetInt(int64(s))
		} else {
			d.errs = append(d.errs, &Error{File: d.file, Line: n.Line, Key: key, Err: err})
		}
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		if b, err := strconv.ParseBool(n.Value); err == nil && n.Tag == "!!bool" {
			v.SetBool(b)
		} else {
			bad()
		}
	case reflect.Int:
		if i, err := strconv.ParseInt(n.Value, 10, 64); err == nil && n.Tag == "!!int" {
			v.SetInt(i)
		} else {
			bad()
		}
	default: // strings: what YAML takes for a number or a bool is text here, as in nodeID: 7
		v.SetString(n.Value)
	}
}

// keysOf returns the key of each field of a struct, in order.
func keysOf(t reflect.Type) []string {
	keys := make([]string, t.NumField())
	for i := range keys {
		keys[i] = t.Field(i).Tag.Get("yaml")
	}
	return keys
}

func join(parent, key string) string {
	if parent == "" {
		return key
	}
	return parent + "." + key
}

// suggest names the known key that was probably meant.
func suggest(key string, known []string) string {
	for _, k := range known {
		if strings.EqualFold(k, key) || oneEdit(k, key) {
			return fmt.Sprintf(": did you mean %q?", k)
		}
	}
	return ", known here: " + strings.Join(known, ", ")
}

// oneEdit reports whether a and b differ by one inserted, missing or other byte, or by two neighbours swapped.
func oneEdit(a, b string) bool {
	if len(a) < len(b) {
		a, b = b, a
	}
	i := 0
	for i < len(b) && a[i] == b[i] {
		i++
	}
	a, b = a[i:], b[i:]
	switch {
	case len(a) == len(b)+1:
		return a[1:] == b
	case len(a) != len(b) || a == "":
		return false
	default:
		return a[1:] == b[1:] || len(a) > 1 && a[0] == b[1] && a[1] == b[0] && a[2:] == b[2:]
	}
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "mapping"
	case yaml.SequenceNode:
		return "list"
	default:
		return "plain value"
	}
}

func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return `a duration: write a number and a unit, as in "500ms"`
	case reflect.TypeFor[Size]():
		return `a size: write a whole number and a unit, as in "8Mi"`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	default:
		return "text"
	}
}

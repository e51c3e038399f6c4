package csi

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits of the specification ("Size Limits"), in bytes.
const (
	maxString = 128
	maxNodeID = 256
	maxMap    = 4 << 10 // keys and values together; a list of strings too
	maxPath   = 4095    // of Linux
)

// checkLimits reports INVALID_ARGUMENT for a string, a list or a map of m, however deep, that is too long or has control characters. The
// message names the field and never its value.
func checkLimits(m proto.Message) error {
	var bad error
	walk(m.ProtoReflect(), "", &bad)
	return bad
}

func walk(m protoreflect.Message, where string, bad *error) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := where + string(f.Name())
		switch {
		case f.IsMap():
			total := 0
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				total += len(k.String()) + len(e.String())
				if f.MapValue().Kind() == protoreflect.StringKind && (control(k.String()) || control(e.String())) {
					*bad = invalid("%s has a key or a value with a control character", name)
				}
				return true
			})
			if total > maxMap {
				*bad = invalid("%s has %d bytes, at most %d are allowed", name, total, maxMap)
			}
		case f.IsList():
			total := 0
			for i := range v.List().Len() {
				switch {
				case f.Kind() == protoreflect.MessageKind:
					walk(v.List().Get(i).Message(), name+".", bad)
				case f.Kind() == protoreflect.StringKind:
					s := v.List().Get(i).String()
					total += len(s)
					if control(s) {
						*bad = invalid("%s has a control character", name)
					}
				}
			}
			if total > maxMap {
				*bad = invalid("%s has %d bytes, at most %d are allowed", name, total, maxMap)
			}
		case f.Kind() == protoreflect.MessageKind:
			walk(v.Message(), name+".", bad)
		case f.Kind() == protoreflect.StringKind:
			if n, most := len(v.String()), longest(string(f.Name())); n > most {
				*bad = invalid("%s has %d bytes, at most %d are allowed", name, n, most)
			} else if control(v.String()) {
				*bad = invalid("%s has a control character", name)
			}
		}
		return *bad == nil
	})
}

func longest(field string) int {
	switch {
	case strings.HasSuffix(field, "_path"):
		return maxPath
	case field == "node_id":
		return maxNodeID
	default:
		return maxString
	}
}

func control(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

package config

import (
	"errors"
	"strconv"
	"strings"
)

// ErrInvalid is matched by every Error and Errors.
var ErrInvalid = errors.New("config: invalid configuration")

// Error is one thing wrong with one key.
type Error struct {
	File string // "" when no file was read
	Line int    // 0 when the key is not in the file
	Key  string // path, as in kvdb.raft.members[0].id; "" for the file as a whole
	Msg  string // what is wrong, and what to write instead
	Err  error  // cause, instead of Msg
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("config: ")
	if e.File != "" {
		b.WriteString(e.File + ":")
		if e.Line > 0 {
			b.WriteString(strconv.Itoa(e.Line) + ":")
		}
		b.WriteString(" ")
	}
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	if e.Err != nil {
		b.WriteString(strings.TrimPrefix(e.Err.Error(), "config: "))
	} else {
		b.WriteString(e.Msg)
	}
	return b.String()
}

// Unwrap makes errors.Is match ErrInvalid and the cause.
func (e *Error) Unwrap() []error {
	if e.Err != nil {
		return []error{ErrInvalid, e.Err}
	}
	return []error{ErrInvalid}
}

// Errors is everything wrong with a configuration, in the order of the file.
type Errors []*Error

func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes errors.Is and errors.As look at each.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}

// locate adds where in the file the keys stand: the key itself, else the nearest one around it.
func (es Errors) locate(file string, lines map[string]int) {
	for _, e := range es {
		e.File = file
		for key := e.Key; key != "" && e.Line == 0; key = parent(key) {
			e.Line = lines[key]
		}
	}
}

// parent cuts the last part of a key path.
func parent(key string) string {
	return key[:max(strings.LastIndexAny(key, ".["), 0)]
}

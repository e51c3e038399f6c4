package nemesis

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/anishathalye/porcupine"
)

// ErrHistory means that no order of the requests explains the answers.
var ErrHistory = errors.New("nemesis: the history cannot be explained")

// step is what a request does to one block.
type step struct {
	write   bool
	version int64 // written, or read
	maybe   bool  // a write that was not acknowledged
}

// register is a block that holds a version: reads see what was written last, and a write that was not acknowledged may have
// happened or not.
func register(version int64) porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{version} },
		Step: func(state, input, _ any) []any {
			s := input.(step)
			switch {
			case s.maybe:
				return []any{state, s.version}
			case s.write:
				return []any{s.version}
			case state == s.version:
				return []any{state}
			default:
				return nil
			}
		},
	}
	return m.ToModel()
}

// Check returns an ErrHistory unless every answer can be explained: for each block there is one order of all requests, each at some
// moment between its call and its return, that a register would answer in that way.
//
// A write that was never acknowledged has happened at some moment before the next attachment of the volume was there, or never:
// replicas take nothing from an attachment that another one has replaced.
func Check(h History) error {
	var bad []string
	for block, version := range h.Start {
		ops := h.operations(block)
		model := register(version)
		if !porcupine.CheckOperations(model, ops) {
			bad = append(bad, h.explain(block, model, ops))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%w: %d of %d blocks are wrong\n%s", ErrHistory, len(bad), len(h.Start), strings.Join(bad[:min(3, len(bad))], "\n"))
	}
	return nil
}

// operations are the steps of one block.
func (h *History) operations(block int) []porcupine.Operation {
	var ops []porcupine.Operation
	for _, r := range h.Requests {
		i := block - r.First
		if i < 0 || i >= len(r.Versions) || r.Kind == Flush || r.Kind == Read && !r.OK {
			continue
		}
		o := porcupine.Operation{ClientId: r.Attachment, Input: step{r.Kind != Read, r.Versions[i], !r.OK}, Call: r.Call, Return: r.Return}
		if !r.OK {
			o.Return = math.MaxInt64
			if next, replaced := h.next(r.Attachment); replaced {
				o.Return = max(r.Call, next.Active)
			}
		}
		ops = append(ops, o)
	}
	return ops
}

// next is the attachment that replaced one.
func (h *History) next(attachment int) (Attachment, bool) {
	if attachment+1 < len(h.Attachments) {
		return h.Attachments[attachment+1], true
	}
	return Attachment{}, false
}

// explain tells what is known of a block up to the first answer that nothing explains.
func (h *History) explain(block int, model porcupine.Model, ops []porcupine.Operation) string {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	n := sort.Search(len(ops), func(n int) bool { return !porcupine.CheckOperations(model, beginning(ops, n)) })
	var b strings.Builder
	fmt.Fprintf(&b, "block %d, which held version %#x; the last line is what nothing explains:", block, h.Start[block])
	for _, o := range ops[max(0, n-12):n] {
		s := o.Input.(step)
		what := "read"
		switch {
		case s.maybe:
			what = "not acknowledged:"
		case s.write:
			what = "wrote"
		}
		fmt.Fprintf(&b, "\n  attachment %d %s %#x, from %.3f to %.3f s", o.ClientId, what, s.version, seconds(o.Call), seconds(o.Return))
	}
	return b.String()
}

// seconds are those of a time, for people.
func seconds(ns int64) float64 { return float64(ns) / 1e9 }

// beginning is what was known when n of the operations, which are in the order of their ends, had ended: the others that had
// begun may or may not have happened.
func beginning(ops []porcupine.Operation, n int) []porcupine.Operation {
	if n == 0 {
		return nil
	}
	known := slices.Clone(ops[:n])
	for _, o := range ops[n:] {
		if s := o.Input.(step); s.write && o.Call <= ops[n-1].Return {
			s.maybe = true
			o.Input, o.Return = s, math.MaxInt64
			known = append(known, o)
		}
	}
	return known
}

package vm

import (
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// story is what happens to one place of a ledger, in words: "w1" submits version 1, "s1" one that is stable when confirmed,
// "c1" confirms it, "f1" begins a flush, "F1" confirms it, "here" cuts the power of one site, "all" that of every replica, "r1"
// reads version 1, which is right, and "x1" reads it, which is wrong.
func story(t *testing.T, words string) {
	t.Helper()
	l := NewLedger(1)
	for _, w := range strings.Fields(words) {
		n := int64(w[1] - '0')
		switch w[0] {
		case 'w', 's':
			l.Note(order.Line{Submit: &order.Write{Version: n, Count: 1, Sync: w[0] == 's'}})
		case 'c':
			l.Note(order.Line{Confirm: n})
		case 'f':
			l.Note(order.Line{Flush: int(n)})
		case 'F':
			l.Note(order.Line{Flushed: int(n)})
		case 'h', 'a':
			l.Cutting()
			for v := range l.writes {
				l.Note(order.Line{Confirm: v}) // too late to be a promise
			}
			l.Ended(w == "all")
		case 'r', 'x':
			if _, err := l.Check([]int64{n}); (err != nil) != (w[0] == 'x') {
				t.Errorf("%s: at %s: %v", words, w, err)
			}
		}
	}
}

func TestLedger(t *testing.T) {
	for _, words := range []string{
		"r0",
		"w1 c1 r1", "w1 c1 x0",
		// One site is lost: what was confirmed is there, what was not may be.
		"w1 c1 here r1", "w1 c1 here x0", "w1 c1 w2 here r1", "w1 c1 w2 here r2", "w1 c1 w2 here x0", "w1 here r0",
		// All are: what was flushed is there, and of the rest each may be.
		"w1 c1 all r0", "w1 c1 all r1", "w1 c1 f1 F1 all x0", "w1 c1 f1 F1 all r1", "s1 c1 all x0", "s1 all r0", "s1 all r1",
		"w1 c1 f1 F1 w2 c2 w3 all r1", "w1 c1 f1 F1 w2 c2 w3 all r2", "w1 c1 f1 F1 w2 c2 w3 all r3", "w1 c1 f1 F1 w2 c2 all x0",
		// A flush covers what was confirmed before it began, and nothing else.
		"w1 f1 c1 F1 all r0", "w1 f1 F1 c1 all r0", "w1 c1 f1 all r0", "w1 c1 f1 w2 c2 F1 all r0", "w1 c1 w2 f1 F1 all x0",
		"w1 f1 F1 all r1", "w1 c1 w2 f1 F1 all r2",
		// What was read after a cut stays, and what was not found does not come back.
		"w1 c1 w2 all r1 r1", "w1 c1 w2 all r1 x2", "w1 c1 w2 all r1 all x2", "w1 c1 w2 all r2 all x1",
		"w1 c1 w2 here r2 x1", "w1 c1 w2 here r1 x2",
		// But not through a cut of everything, while nothing made it stable.
		"w1 c1 w2 here r2 all r0", "w1 c1 w2 here r2 f1 F1 all x0", "w1 c1 w2 here r1 f1 F1 all x2",
		"w1 c1 w2 all w3 c3 all r2", "w1 c1 w2 all w3 c3 r3", "w1 c1 w2 all w3 c3 x2", "w1 all r0 w2 c2 all r0", "w1 all r0 w2 all x1",
		// Zeroes are a version like others.
		"w8 c8 r0", "w7 c7 w8 c8 r0", "w7 c7 w8 c8 x7",
	} {
		story(t, words)
	}
}

func TestFileLedger(t *testing.T) {
	l := NewFileLedger()
	put := func(version, file int64) { l.Note(order.Line{Submit: &order.Write{Version: version, First: file}}) }
	put(1, 0)
	l.Note(order.Line{Confirm: 1})
	put(2, 1)
	put(3, 0)
	l.Cutting()
	l.Note(order.Line{Confirm: 3})
	l.Ended()
	for _, c := range []struct {
		found []int64
		right bool
	}{
		{[]int64{1, 0}, true}, {[]int64{3, 2}, true}, {[]int64{0, 2}, false}, {[]int64{2, 0}, false}, {[]int64{1, 1}, false},
		{[]int64{order.Damaged, 0}, false}, {[]int64{1, order.Damaged}, false}, {[]int64{4, 0}, false},
	} {
		if err := l.Check(c.found); (err == nil) != c.right {
			t.Errorf("%v: %v", c.found, err)
		}
	}
}

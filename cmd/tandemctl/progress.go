package main

import (
	"cmp"
	"fmt"
	"strings"
)

// progressLine is one thing that is waited for.
type progressLine struct {
	key  string // what it is about; not shown
	mark string // without a terminal the text is printed when the mark changed; "" means the text itself
	text string
}

// progress shows lines on standard error: drawn in place on a terminal, else
// printed when something happened, so that a log stays short.
type progress struct {
	a     *app
	drawn int               // lines on the terminal now
	marks map[string]string // key -> mark of what was printed last
}

func newProgress(a *app) *progress {
	return &progress{a: a, marks: map[string]string{}}
}

func (p *progress) show(lines []progressLine) {
	if p.a.stderrTTY {
		p.draw(lines)
		return
	}
	for _, l := range lines {
		mark := cmp.Or(l.mark, l.text)
		if p.marks[l.key] != mark {
			p.marks[l.key] = mark
			fmt.Fprintln(p.a.stderr, l.text)
		}
	}
}

// draw writes over what it drew before: up, then each line erased and written, then what is left below erased.
func (p *progress) draw(lines []progressLine) {
	var b strings.Builder
	b.WriteString("\x1b[?7l") // a long line is cut off: wrapped, it would count as two
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	for _, l := range lines {
		b.WriteString("\r\x1b[K" + l.text + "\n")
	}
	b.WriteString("\x1b[J\x1b[?7h")
	p.drawn = len(lines)
	fmt.Fprint(p.a.stderr, b.String())
}

// end takes the drawing away: the answer follows.
func (p *progress) end() {
	if p.drawn > 0 {
		fmt.Fprintf(p.a.stderr, "\x1b[%dA\r\x1b[J", p.drawn)
		p.drawn = 0
	}
}

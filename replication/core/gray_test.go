package core

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// TestGrayShare gives a coordinator answers of two members, window by window, and wants the second one to be taken for slow when in each of
// the last six more than one in a hundred took too long, with enough of them.
func TestGrayShare(t *testing.T) {
	type window struct{ writes, late int } // of the second member; the first one is fast
	six := func(w window) []window { return []window{w, w, w, w, w, w} }
	for _, test := range []struct {
		name string
		in   []window
		want bool
	}{
		{"more than one in a hundred", six(window{100, 2}), true},
		{"one in a hundred", six(window{100, 1}), false},
		{"one of fewer", six(window{99, 1}), true},
		{"five windows", six(window{100, 100})[:5], false},
		{"one good window", append(six(window{100, 100})[:5], window{100, 1}), false},
		{"and then six", append([]window{{100, 0}}, six(window{100, 100})...), true},
		{"idle in between", append(six(window{100, 100})[:5], window{}, window{100, 100}), false},
		{"nine writes", append(six(window{1, 1})[:5], window{4, 4}), false},
		{"ten writes", append(six(window{1, 1})[:5], window{5, 5}), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &Coordinator{
				o: Options{EvictSlow: 20e6, SlowWindow: 5e9, SlowWindows: 6, SlowWrites: 10, SlowRest: 60e9}, now: 1e15, isr: 3,
				cfg: &replication.Config{Protection: replication.MaxAvailability}, m: []*member{{open: true}, {open: true}}, evictWhy: make([]string, 2),
			}
			c.watchGray()
			for _, w := range test.in {
				for k := range w.writes {
					took := c.o.EvictSlow // still good
					if k < w.late {
						took++
					}
					c.timeAnswer(0, &IO{Kind: replication.MsgWrite, sent: c.now - c.o.EvictSlow})
					c.timeAnswer(1, &IO{Kind: replication.MsgWrite, sent: c.now - took})
					c.timeAnswer(1, &IO{Kind: replication.MsgFlush, sent: c.now - 1e9})
				}
				c.now += c.o.SlowWindow
				c.watchGray()
			}
			if got := c.evictReq == 2; got != test.want {
				t.Errorf("is to leave: %v, want %v (%+v)", got, test.want, c.m[1].gray)
			}
		})
	}
}

package volume

import (
	"math"
	"testing"
)

// A receiver that gives back more room than it has does not get more on the way to
// it, and cannot make the count wrap.
func TestCreditIsBounded(t *testing.T) {
	s := newSender(nil, unlimited)
	s.addCredit(math.MaxUint32)
	if s.credit != unlimited {
		t.Errorf("credit %d above all", s.credit)
	}
	s.setCredit(32 << 20)
	s.credit -= 1 << 20
	for _, c := range []struct{ add, want int64 }{{4096, 31<<20 + 4096}, {math.MaxUint32, 32 << 20}, {math.MaxUint32, 32 << 20}} {
		if s.addCredit(c.add); s.credit != c.want {
			t.Errorf("after %d more: credit %d, want %d", c.add, s.credit, c.want)
		}
	}
}

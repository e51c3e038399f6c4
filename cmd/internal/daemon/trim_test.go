package daemon

import "testing"

func TestWorthTrimming(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		what        string
		before, now heap
		live        uint64
		want        bool
	}{
		{"after a burst", heap{allocated: 500 * mib}, heap{500 * mib, 50 * mib, 100 * mib}, 90 * mib, true},
		{"garbage alone", heap{allocated: 500 * mib}, heap{510 * mib, 0, 100 * mib}, 20 * mib, true},
		{"never collected", heap{}, heap{20 * mib, 0, 20 * mib}, 0, true},
		{"under load", heap{allocated: 500 * mib}, heap{600 * mib, 50 * mib, 100 * mib}, 90 * mib, false},
		{"little to gain", heap{allocated: 500 * mib}, heap{501 * mib, 4 * mib, 23 * mib}, 20 * mib, false},
		{"little for so much", heap{allocated: 500 * mib}, heap{501 * mib, 30 * mib, 205 * mib}, 200 * mib, false},
		{"less alive than before", heap{allocated: 500 * mib}, heap{501 * mib, 1 * mib, 20 * mib}, 30 * mib, false},
	} {
		if got := c.now.worthTrimming(c.before, c.live); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

func TestReadHeap(t *testing.T) {
	before := readHeap()
	b := make([]byte, 32<<20)
	now := readHeap()
	if now.allocated-before.allocated < uint64(len(b)) || now.objects < uint64(len(b)) {
		t.Errorf("32 MiB were allocated: %+v, then %+v", before, now)
	}
	b[0]++
}

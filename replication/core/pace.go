package core

import (
	"math/bits"

	"github.com/tandem-storage/tandem/replication"
)

// Copies beside a consumer (protocol.md 9.3). What they may cost it is that the 99th percentile of its latency doubles.
// So the coordinator knows how long requests take while nothing is copied, counts those that take twice as long while
// something is, and changes the speed of the copies by that: half of it when they are more than one in a hundred, a bit
// more when they are not. There is a floor (Options.ResyncFloor), for a replica that is out of sync is a risk too; whatever is written meanwhile
// goes to the joiner as well, so that what is left to copy only shrinks, and any speed comes to the end.
const (
	busyFor   = int64(1e9)  // after a request the consumer counts as at work for so long, ns
	paceUnit  = copyMost    // copied at once beside it, in bytes: what its next request may wait for
	paceCeil  = 1 << 40     // bytes a second
	paceEvery = int64(2e8)  // the speed changes so often, ns
	paceMost  = int64(1e9)  // and at least so often, however few requests there are
	paceCount = 100         // requests from which a percentile is told
	paceKept  = 4096        // requests that the quiet latency comes from
	paceLeast = int64(1e6)  // requests that take less are not slow, ns
	probeWait = int64(10e9) // copies pause so often to learn the quiet latency anew
	probeFor  = int64(2e8)  // for so long
	probeRest = int64(1e8)  // it begins so long after the last copy
)

// pace is the speed of copies beside a consumer.
type pace struct {
	quiet  [paceClasses]latencies
	rate   int64 // bytes a second
	steady bool  // it was too much once: it grows slowly since

	began   int64 // of the count below; what was proposed before is not in it
	n, slow int   // requests beside copies, and the slow ones of them
	held    bool  // a copy had to wait for the rate meanwhile
	unknown bool  // there were requests of a class whose quiet latency is not known

	copied  int64 // when a copy was last under way
	probed  int64 // when the last pause for the quiet latency ended, or will end
	probing bool
}

// paceClasses: reads and writes, by size.
const paceClasses = 8

// classOf is the class of a request, -1 for one that is not looked at.
func classOf(io *IO) int {
	size := min(max(bits.Len64(uint64(io.Len-1))-12, 0)/2, 3) // to 8 KiB, 32 KiB, 128 KiB, more
	switch io.Kind {
	case replication.MsgRead:
		return size
	case replication.MsgWrite:
		return 4 + size
	default:
		return -1
	}
}

// answered counts a request that the consumer gets its answer to. copying: a copy is under way.
func (p *pace) answered(now int64, io *IO, copying bool) {
	k := classOf(io)
	if k < 0 {
		return
	}
	q := &p.quiet[k]
	switch took := now - io.born; {
	case !copying && (p.copied == 0 || io.born-p.copied >= probeRest):
		q.add(took)
	case io.born < p.began: // an earlier speed is to blame
	case q.total < paceCount:
		p.unknown = true
	default:
		p.n++
		if took > max(2*q.p99(), paceLeast) {
			p.slow++
		}
	}
}

// judge changes the speed when it is time. floor is the least that it may be, in bytes a second.
func (p *pace) judge(now, floor int64) {
	if p.rate == 0 {
		p.rate, p.began = 2*floor, now
	}
	if t := now - p.began; t < paceEvery || t < paceMost && p.n < paceCount {
		return
	}
	switch {
	case p.slow*100 > p.n:
		p.rate, p.steady = max(p.rate/2, floor), true
	case !p.held: // it is not the rate that bounds them
	case p.steady:
		p.rate = min(p.rate+p.rate/16, paceCeil)
	default:
		p.rate = min(2*p.rate, paceCeil)
	}
	p.began, p.n, p.slow, p.held = now, 0, 0, false
}

// paused reports whether copies are to wait because the quiet latency is being learned.
func (p *pace) paused(now int64) bool {
	if wait := now - p.probed; wait >= probeWait || p.unknown && wait >= probeWait/10 {
		p.probed, p.probing = now+probeRest+probeFor, true
		for k := range p.quiet {
			p.quiet[k].age(4 * paceCount)
		}
	}
	if p.probing && now >= p.probed {
		p.probing, p.unknown = false, false
		p.began, p.n, p.slow, p.held = now, 0, 0, false
	}
	return p.probing
}

// latencies counts requests by how long they took: four buckets from one power of two, in microseconds, to the next.
type latencies struct {
	count [100]uint32
	total uint32
	tail  int64 // the 99th percentile, ns; 0 it has to be found again
}

// add counts a request that took t ns.
func (l *latencies) add(t int64) {
	us := uint64(max(t, 0))/1000 + 4
	e := bits.Len64(us) - 3 // from 0; the two bits behind the first choose the bucket
	l.count[min(4*e+int(us>>e&3), len(l.count)-1)]++
	l.total++
	l.tail = 0
	if l.total > paceKept {
		l.age(paceKept / 2)
	}
}

// age forgets so much that about n requests are left, at most.
func (l *latencies) age(n uint32) {
	for l.total > n {
		l.total = 0
		for i := range l.count {
			l.count[i] /= 2
			l.total += l.count[i]
		}
	}
	l.tail = 0
}

// p99 is what one in a hundred took longer than, at most, in ns: the upper end of its bucket.
func (l *latencies) p99() int64 {
	if l.tail > 0 {
		return l.tail
	}
	left := l.total / 100
	for i := len(l.count) - 1; i >= 0; i-- {
		if l.count[i] > left {
			l.tail = (int64(4+i%4+1)<<(i/4) - 4) * 1000
			break
		}
		left -= l.count[i]
	}
	return l.tail
}

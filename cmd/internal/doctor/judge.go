package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	pb "github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
)

// Limits that do not follow from a timer.
const (
	limitRTT     = clusterdomain.RTTWarning // p99: every write waits for it
	warnJitter   = limitRTT / 2
	warnClock    = time.Second // only people compare times of two nodes
	warnMTU      = 1500
	warnDisk     = 50 * time.Millisecond
	warnKvdb     = 200 * time.Millisecond
	badLossParts = 10 // one probe of so many
)

// Answer is what a node told, or why it did not.
type Answer struct {
	Node    string
	Offline bool // it does not keep its registration in the kvdb alive
	*pb.MeasureResponse
	Err error
}

// Judge judges what the nodes measured, worst first.
func Judge(answers []Answer) []*pb.Check {
	j := &judge{}
	for _, a := range answers {
		j.node(a)
	}
	slices.SortStableFunc(j.checks, func(a, b *pb.Check) int { return cmp.Compare(b.Verdict, a.Verdict) })
	return j.checks
}

type judge struct{ checks []*pb.Check }

// add judges a value: bad, or else warn, or else OK; advice is for both.
func (j *judge) add(name, subject, value, limit string, bad, warn bool, advice string) {
	c := &pb.Check{Name: name, Subject: subject, Value: value, Limit: limit, Verdict: pb.Verdict_VERDICT_OK}
	switch {
	case bad:
		c.Verdict, c.Advice = pb.Verdict_VERDICT_BAD, advice
	case warn:
		c.Verdict, c.Advice = pb.Verdict_VERDICT_WARN, advice
	}
	j.checks = append(j.checks, c)
}

func (j *judge) node(a Answer) {
	lease := "registered"
	if a.Offline {
		lease = "not registered"
	}
	j.add("lease", a.Node, lease, "registered", a.Offline, false, "is tandemd running there, and does it reach the kvdb? see its log")
	if a.Err != nil {
		j.add("answer", a.Node, a.Err.Error(), "an answer", true, false, "start the node, or look at the network between it and this one")
		return
	}
	t := a.GetTimers()
	for _, l := range a.GetLinks() {
		j.link(a.Node+" -> "+l.Node, l, micros(t.GetSuspectUs()))
	}
	op := micros(t.GetOperationUs())
	for _, d := range a.GetDisks() {
		subject, worst := a.Node+" "+d.Path, micros(d.GetSync().GetMaxUs())
		if d.Error != "" {
			j.add("disk-sync", subject, d.Error, "an answer", true, false, "see the kernel's log for the disk of that pool")
			continue
		}
		j.add("disk-sync", subject, "max "+text(worst), limits(warnDisk, op/4), worst > op/4, worst > warnDisk, "every flush of a volume there waits for this disk: what else uses it?")
	}
	if a.KvdbError != "" {
		j.add("kvdb", a.Node, a.KvdbError, "an answer", true, false, "volumes in sync go on; nothing can be attached or failed over until the kvdb answers")
		return
	}
	k, ttl := micros(a.GetKvdb().GetMaxUs()), micros(t.GetLeaseUs())
	j.add("kvdb", a.Node, "max "+text(k), limits(warnKvdb, ttl/4), k > ttl/4, k > warnKvdb, "evictions and failover wait for the kvdb: give its members faster disks or links")
}

func (j *judge) link(subject string, l *pb.Link, suspect time.Duration) {
	if l.Answered == 0 {
		j.add("link", subject, l.Error, "an answer", true, false, "look at the network between the two, in this direction")
		return
	}
	p99, jitter, clock := micros(l.P99Us), micros(l.JitterUs), micros(l.ClockUs).Abs()
	j.add("rtt-p99", subject, fmt.Sprintf("%s (p50 %s)", text(p99), text(micros(l.P50Us))), limits(0, min(limitRTT, suspect/4)),
		p99 > min(limitRTT, suspect/4), false, "every write waits for a round trip: use a shorter or less loaded path")
	j.add("jitter", subject, text(jitter), limits(warnJitter, 0), false, jitter > warnJitter, "look for a queue on the path: a link that is full, or shaped")
	lost := l.Sent - min(l.Sent, l.Answered)
	j.add("loss", subject, fmt.Sprintf("%d of %d", lost, l.Sent), "0", lost*badLossParts > l.Sent, lost > 0, "requests took longer than 500 ms or were lost: look at the network between the two")
	j.add("clock", subject, text(clock)+" apart", limits(warnClock, 0), false, clock > warnClock, "run NTP on both: the times of logs, ledger and audit trail do not compare (no data depend on it)")
	if l.Mtu != 0 {
		j.add("mtu", subject, fmt.Sprint(l.Mtu), fmt.Sprintf(">= %d", warnMTU), false, l.Mtu < warnMTU, "a small MTU costs throughput: is there a tunnel on the path?")
	}
}

func micros(us int64) time.Duration { return time.Duration(us) * time.Microsecond }

func text(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

// limits shows from where on it is a warning, and bad; 0: never.
func limits(warn, bad time.Duration) string {
	switch {
	case warn == 0 || bad != 0 && bad <= warn:
		return "<= " + text(bad)
	case bad == 0:
		return "<= " + text(warn)
	default:
		return fmt.Sprintf("<= %s (bad: %s)", text(warn), text(bad))
	}
}

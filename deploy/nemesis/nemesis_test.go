package nemesis

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// runner goes through a plan.
type runner struct {
	*cluster
	t          *testing.T
	seed       uint64
	home, away string // where the volume is attached; the other node with a replica
	uri        string
	history    History
	consumers  int
	current    *consumer   // of the attachment at home
	replaced   []*consumer // of attachments before it; their devices must fail, in the end
	backup     string      // what the kvdb comes back from, a directory; "": nothing
	rolled     bool        // the kvdb came back from it, and was not imported yet

	cycles, takeovers, failovers, unasked, refusals, imports, requests int
}

// every is how many cycles are checked at once.
const every = 10

// TestNemesis goes through the plan of a seed.
func TestNemesis(t *testing.T) {
	need(t)
	r := &runner{t: t, seed: seeded(), home: "a1", away: "b1", history: History{Start: make([]int64, places)}}
	plan, err := Plan(r.seed, *cyclesFlag, Fault(*faultFlag), *failoverFlag)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			say("FAILED in cycle %d; SEED=%d CYCLES=%d KVDB=%s; the answers before it: %v", r.cycles, r.seed, *cyclesFlag, *kvdbFlag, Check(r.history))
		}
	}()
	began := time.Now()
	r.cluster = found(t)
	r.operator(t, r.home, "volume", "create", volume, "--size", "16Mi", "--replicas", "2")
	r.serve()
	say("%s: three sites up in %v; SEED=%d", *kvdbFlag, since(began), r.seed)
	for _, c := range plan {
		r.cycle(c)
		if r.cycles%every == 0 || r.cycles == len(plan) {
			r.barrier()
		}
	}
	say("%s: %d cycles, %d takeovers by the operator, %d by arbiters and %d more that were not planned (%d refused: the last in-sync replica, or an old kvdb), %d imports, %d attachments, %d requests; every answer is explained; %v; SEED=%d",
		*kvdbFlag, r.cycles, r.takeovers, r.failovers, r.unasked, r.refusals, r.imports, r.consumers, r.requests, since(began), r.seed)
}

// cycle is one fault and the way back.
func (r *runner) cycle(c Cycle) {
	r.t.Helper()
	r.cycles++
	at, said := time.Now(), ""
	defer func() { say("cycle %3d: %v; served again after %v%s", r.cycles, c, since(at), said) }()
	settled, _ := r.inSync(r.t, r.home)
	if c.Quiet {
		r.quiet()
	}
	stop := r.begin(c)
	from := at
	if c.Takeover {
		take := r.takeOver
		if c.Arbiter {
			take = r.failOver
		}
		switch done := take(); {
		case !done:
			said += ", no takeover: the last in-sync replica is there, or the kvdb is old"
		case c.Fault == RollBehind:
			r.t.Fatal("the volume was taken over with a replica that had been evicted")
		}
		from = time.Now()
	}
	if settled && !c.Takeover && r.goesOn(c) {
		r.progress("while it lasts")
	}
	<-time.After(time.Until(from.Add(c.Hold))) // the fault itself: it lasts that long
	stop()
	r.restore(r.t)
	if c.Fault == Move {
		r.move()
	}
	if c.Quiet {
		r.tell(resume) // of no use to one that was replaced
	}
	for _, site := range []string{alpha, beta} {
		r.operator(r.t, r.home, "cluster", "domains", "activate", "--name", site)
	}
	r.serve()
	for _, old := range r.replaced {
		r.gone(old)
	}
	r.replaced = nil
	if c.Settle {
		r.settle()
		said += fmt.Sprintf(", in sync after %v", since(at))
	}
}

// begin begins the fault of a cycle. The function that it returns ends what restore does not.
func (r *runner) begin(c Cycle) (stop func()) {
	r.t.Helper()
	home, away := siteOf[r.home], siteOf[r.away]
	lost := lab.Link{Lost: true}
	stop = func() {}
	var err error
	switch c.Fault {
	case CutHome:
		r.Cut(home)
	case CutAway:
		r.Cut(away)
	case CutWitness:
		r.Cut(gamma)
	case CutPair:
		r.both(home, away, lost)
	case LoseOut:
		r.SetLink(home, away, lost)
	case LoseIn:
		r.SetLink(away, home, lost)
	case MuteHome:
		r.SetLink(home, away, lost)
		r.SetLink(home, gamma, lost)
	case DeafHome:
		r.SetLink(away, home, lost)
		r.SetLink(gamma, home, lost)
	case BlindHome:
		r.both(home, away, lab.Link{LostKVDB: true})
		r.both(home, gamma, lab.Link{LostKVDB: true})
	case Flap:
		stop = r.flap(home, away)
	case Slow:
		for i, a := range sites {
			for _, b := range sites[:i] {
				r.both(a, b, lab.Link{Delay: 20 * time.Millisecond})
			}
		}
	case StopHome:
		err = r.Node(r.home).Signal(syscall.SIGSTOP)
	case StopAway:
		err = r.Node(r.away).Signal(syscall.SIGSTOP)
	case KillHome:
		err = r.Node(r.home).Kill()
	case KillAway:
		err = r.Node(r.away).Kill()
	case KillBoth:
		if err = r.Node(r.home).Kill(); err == nil {
			err = r.Node(r.away).Kill()
		}
	case TornHome:
		r.tear()
		err = r.Node(r.home).Kill()
	case TornBoth:
		r.tear()
		if err = r.Node(r.home).Kill(); err == nil {
			err = r.Node(r.away).Kill()
		}
	case StopKVDB:
		err = r.member(sites[c.Site], func(p *lab.Process) error { return p.Signal(syscall.SIGSTOP) })
	case KillKVDB:
		err = r.member(sites[c.Site], (*lab.Process).Kill)
	case KillQuorum:
		if err = r.member(away, (*lab.Process).Kill); err == nil {
			err = r.member(gamma, (*lab.Process).Kill)
		}
	case LoseMember:
		site := sites[c.Site]
		err = r.LoseMember(site)
		stop = func() {
			until(r.t, "another member is in "+site, func() (bool, error) {
				err := r.ReplaceMember(r.t.Context(), site)
				return err == nil, err
			})
		}
	case RollBack:
		err = r.rollBack()
		stop = r.importAll
	case RollBehind:
		if err = r.rollBehind(); err == nil {
			err = r.Start(away)
		}
		stop = r.importAll
	case FullHome:
		err = r.fill(r.home)
	case FullAway:
		err = r.fill(r.away)
	case KillClient:
		err = r.current.proc.Kill()
	case Deactivate:
		if !r.deactivate(r.t, r.home, away, false) {
			r.refusals++
		}
	case Usurp, Move: // break nothing
	default:
		err = fmt.Errorf("no such fault: %q", c.Fault)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return stop
}

// goesOn reports whether the volume must be served while the fault lasts, if its replicas were in sync before: wherever home
// reaches a majority of the kvdb and a replica, and also where there is no majority but nothing to be decided.
func (r *runner) goesOn(c Cycle) bool {
	switch c.Fault {
	case CutAway, CutPair, CutWitness, LoseOut, LoseIn, BlindHome, Slow, StopAway, KillAway, FullHome, FullAway, Deactivate:
		return true
	case StopKVDB, KillKVDB, KillQuorum, LoseMember, RollBack, RollBehind:
		return *kvdbFlag == "etcd" // the embedded one dies with its daemon
	default:
		return false
	}
}

func (r *runner) member(site string, do func(*lab.Process) error) error {
	p, err := r.KVDB(site)
	if err != nil {
		return err
	}
	return do(p)
}

// quiet has the consumer read only.
func (r *runner) quiet() {
	r.t.Helper()
	r.tell(quiet)
	until(r.t, "the consumer writes nothing", func() (bool, error) {
		r.poll()
		n := r.current.writing()
		return n == 0, fmt.Errorf("%d writes are not answered", n)
	})
}

// tell sends the consumer a signal, if it still runs.
func (r *runner) tell(s syscall.Signal) {
	r.t.Helper()
	if !r.current.proc.Running() {
		return
	}
	if err := r.current.proc.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// tear cuts home off from away until the consumer waits for nothing but writes, which are at home only, or until it is about
// time that away is evicted.
func (r *runner) tear() {
	r.t.Helper()
	r.both(siteOf[r.home], siteOf[r.away], lab.Link{Lost: true})
	limit := time.Now().Add(suspect / 2)
	until(r.t, "writes wait", func() (bool, error) {
		r.poll()
		n := r.current.writing()
		return n >= depth || time.Now().After(limit), fmt.Errorf("%d do", n)
	})
}

// flap cuts the cable between two sites every other 50 ms.
func (r *runner) flap(a, b string) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for lost := true; ; lost = !lost {
			r.both(a, b, lab.Link{Lost: lost})
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// takeOver deactivates home and attaches the volume away. It returns false if that is refused.
func (r *runner) takeOver() bool {
	r.t.Helper()
	if !r.deactivate(r.t, r.away, siteOf[r.home], r.rolled, "--peer-lost") || !r.attach(r.away) {
		r.refusals++
		return false
	}
	r.takeovers++
	r.changePlaces()
	r.serve()
	return true
}

// failOver waits until the arbiter away has taken the volume over. It returns false if it cannot: the replica there is not in sync.
func (r *runner) failOver() (done bool) {
	r.t.Helper()
	began := time.Now()
	until(r.t, "the arbiter takes over", func() (bool, error) {
		v, err := r.Inspect(r.t.Context(), r.Node(r.away), volume)
		if err != nil {
			return false, err
		}
		done = v.Volume.Attachment.Node == r.away
		stale := slices.ContainsFunc(v.Volume.Replicas, func(p lab.ReplicaView) bool { return p.Node == r.away && !p.InSync })
		return done || stale, fmt.Errorf("attached on %s", v.Volume.Attachment.Node)
	})
	if !done {
		r.refusals++
		return false
	}
	r.failovers++
	say("taken over by the arbiter after %v", since(began))
	r.changePlaces()
	r.serve()
	return true
}

// changePlaces makes the other site home, where somebody attaches the volume.
func (r *runner) changePlaces() {
	if r.current != nil {
		r.replaced = append(r.replaced, r.current)
	}
	r.current = nil
	r.home, r.away = r.away, r.home
}

// moved reports whether an arbiter has taken the volume over that was not waited for: a fault can last long enough for it.
func (r *runner) moved() bool {
	if *failoverFlag == 0 {
		return false
	}
	v, err := r.Inspect(r.t.Context(), r.Node(r.home), volume)
	return err == nil && v.Volume.Attachment.Node == r.away
}

// move detaches the volume by plan and attaches it at the other site.
func (r *runner) move() {
	r.t.Helper()
	r.finish()
	r.detach()
	r.home, r.away = r.away, r.home
}

// attach attaches the volume on a node. It may be the attachment that there is. It returns false if that is refused because the kvdb is
// old, or has no such volume, as long as that may be.
func (r *runner) attach(node string) (done bool) {
	r.t.Helper()
	var out string
	until(r.t, "attach on "+node, func() (bool, error) {
		var err error
		out, err = r.Ctl(r.t.Context(), r.Node(node), "--timeout", "10s", "host", "attach", volume, "-o", "json")
		if r.rolled && (exitCode(err) == refused && strings.Contains(err.Error(), toImport) || exitCode(err) == absent) {
			return true, nil
		}
		done = err == nil
		return done || node == r.home && r.moved(), err
	})
	if !done {
		return false
	}
	uri, err := path(out)
	if err != nil {
		r.t.Fatal(err)
	}
	if uri != r.uri {
		r.uri = uri
		r.history.Attachments = append(r.history.Attachments, Attachment{Active: now()})
	}
	return true
}

// poll takes what all consumers told.
func (r *runner) poll() {
	r.t.Helper()
	for _, c := range append(r.replaced, r.current) {
		if c == nil {
			continue
		}
		if err := c.poll(&r.history); err != nil {
			r.t.Fatal(err)
		}
	}
}

// serve waits until requests are answered at home, and attaches the volume again where its device failed.
func (r *runner) serve() {
	r.t.Helper()
	for {
		if r.current == nil || !r.current.proc.Running() {
			r.dead(r.current)
			if !r.attach(r.home) {
				if r.moved() {
					r.current = nil
					r.unasked++
					r.changePlaces()
					continue
				}
				r.t.Fatalf("%s was attached, and is not any more", volume)
			}
			c, err := r.consume("run")
			if err != nil {
				r.t.Fatal(err)
			}
			r.current = c
		}
		if r.progress("again") {
			return
		}
	}
}

// progress waits until more requests are answered, and returns false if the device fails instead.
func (r *runner) progress(when string) (served bool) {
	r.t.Helper()
	r.poll()
	before, began := r.current.acks, time.Now()
	until(r.t, "requests are answered "+when, func() (bool, error) {
		running := r.current.proc.Running()
		r.poll()
		served = r.current.acks >= before+25
		return served || !running, fmt.Errorf("%d were", r.current.acks-before)
	})
	if took := since(began); took > slow {
		say("it took %v until requests were answered %s, or the device failed: %v", took, when, !served)
	}
	return served
}

// gone waits for the end of a consumer whose attachment was replaced.
func (r *runner) gone(c *consumer) {
	r.t.Helper()
	select {
	case <-c.proc.Done():
	case <-time.After(waitLimit):
		r.t.Fatalf("%s, whose attachment was replaced, still has a device after %v", c.proc.Name, waitLimit)
	}
	r.dead(c)
}

// dead takes the last words of a consumer that ended.
func (r *runner) dead(c *consumer) {
	r.t.Helper()
	if c == nil {
		return
	}
	if err := c.poll(&r.history); err != nil {
		r.t.Fatal(err)
	}
	_ = c.told.Close() // was read only
}

// finish ends the consumer in order.
func (r *runner) finish() {
	r.t.Helper()
	if err := r.current.end(); err != nil {
		say("%v", err) // its device failed: the last fault may do that
	}
	r.dead(r.current)
	r.current = nil
}

// settle waits until both replicas are in sync.
func (r *runner) settle() {
	r.t.Helper()
	until(r.t, "both replicas are in sync", func() (bool, error) { return r.inSync(r.t, r.home) })
}

// barrier ends all requests, reads everything, compares the replicas and checks the history since the last one.
func (r *runner) barrier() {
	r.t.Helper()
	r.settle()
	r.finish()
	r.detach() // now nothing can be in flight
	all := r.readAll()
	r.detach()
	v, err := r.Inspect(r.t.Context(), r.Node(r.home), volume)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.CompareReplicas(v); err != nil {
		r.t.Fatal(err)
	}
	r.history.Requests = append(r.history.Requests, all...)
	at := time.Now()
	if err := Check(r.history); err != nil {
		r.t.Fatal(err)
	}
	r.requests += len(r.history.Requests)
	say("cycle %3d: %d requests of %d attachments are explained, checked in %v", r.cycles, len(r.history.Requests), len(r.history.Attachments), since(at))
	start := make([]int64, places)
	for _, q := range all {
		copy(start[q.First:], q.Versions)
	}
	r.history = History{Start: start}
	r.serve()
}

// readAll attaches the volume and reads every place. What replicas may differ in is reconciled then.
func (r *runner) readAll() []*Request {
	r.t.Helper()
	if !r.attach(r.home) {
		r.t.Fatal("the kvdb was not imported")
	}
	c, err := r.consume("read")
	if err == nil {
		err = c.ended()
	}
	var all History
	if err == nil {
		err = c.poll(&all)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	_ = c.told.Close() // was read only
	return all.Requests
}

// detach detaches the volume. The next attachment is another one.
func (r *runner) detach() {
	r.t.Helper()
	r.operator(r.t, r.home, "host", "detach", volume)
	r.uri = ""
}

package e2e

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
	"github.com/tandem-storage/tandem/replication"
)

// failing is a cluster that goes through the failure table of protocol.md 11, a row after the other, under one writer. What docs/failures.md
// tells of a row is what its test logs.
type failing struct {
	*cluster
	v   vol
	w   *writer
	uri string
	at  string // the node where v is attached
}

// TestFailures goes through the rows of the failure table that one cluster can live through, on both kinds of kvdb; docs/failures.md names the tests of
// the others. After each row everything that was confirmed is there, and both replicas are in sync.
func TestFailures(t *testing.T) {
	needRoot(t, "/dev/net/tun")
	need(t, "ip", "nsenter")
	t.Parallel()
	for _, kind := range []string{"raft", "etcd"} {
		t.Run(kind, func(t *testing.T) {
			f := &failing{cluster: own(t, func(s *lab.Spec) { s.KVDB, s.Networks = kind, true })}
			f.v = f.create(t, "failing", "64Mi")
			f.w = newWriter(t)
			f.open(t, f.v.home)
			chapters(t,
				chapter{"F1 replica's process restarts", f.replicaRestarts},
				chapter{"F2 replica's node is lost", f.replicaLost},
				chapter{"F5 link between the sites cut", func(t *testing.T) {
					f.linkCut(t, func(l lab.Link) { f.SetLink(alpha, beta, l); f.SetLink(beta, alpha, l) })
				}},
				chapter{"F7 the other site cut off", func(t *testing.T) {
					f.linkCut(t, func(l lab.Link) {
						if l.Lost {
							f.Cut(beta)
						} else {
							f.Heal(beta)
						}
					})
				}},
				chapter{"F23 bits flip on the wire", f.bitsFlip},
				chapter{"F8 F9 F10 kvdb lost", f.kvdbLost},
				chapter{"F11 coordinator's node lost, its disk elsewhere", f.computeLost},
				chapter{"F21 last copy loses power", f.lastCopyLosesPower},
				chapter{"F15 everything loses power", f.allLost},
				chapter{"F16 coordinator paused for a moment", f.paused})
			f.close(t)
			f.identical(t, f.v.name)
		})
	}
}

// open attaches the volume and lets the writer begin.
func (f *failing) open(t *testing.T, node string) {
	t.Helper()
	f.at, f.uri = node, f.attach(t, node, f.v.name)
	f.w.start(t, f.uri)
}

// close ends the writer, compares what it was told, and detaches.
func (f *failing) close(t *testing.T) {
	t.Helper()
	f.w.stop(t)
	f.w.check(t, f.uri)
	f.detach(t, f.at, f.v.name)
}

// whole wants writes to go on, and both replicas in sync again.
func (f *failing) whole(t *testing.T) {
	t.Helper()
	f.inSync(t, f.at, f.v.name, time.Minute, sorted(f.v.home, f.v.away)...)
	f.w.more(t, 100, 20*time.Second)
}

// alone wants the replica elsewhere to be evicted, and tells how long writes paused since.
func (f *failing) alone(t *testing.T, since time.Time, within time.Duration) {
	t.Helper()
	f.inSync(t, f.at, f.v.name, 30*time.Second, f.v.home)
	f.w.more(t, 100, 20*time.Second)
	p := f.w.pause(t, since)
	if p > within {
		t.Errorf("writes paused for %v", p)
	}
	t.Logf("writes paused for %v", p.Round(time.Millisecond))
}

func (f *failing) must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func (f *failing) replicaRestarts(t *testing.T) {
	at := time.Now()
	f.must(t, f.Node(f.v.away).Kill(), f.StartNode(f.Node(f.v.away)))
	f.whole(t)
	t.Logf("writes paused for %v", f.w.pause(t, at).Round(time.Millisecond))
}

// replicaLost is a power cut: silence. The node comes back as another process.
func (f *failing) replicaLost(t *testing.T) {
	at := time.Now()
	f.must(t, f.Node(f.v.away).Signal(syscall.SIGSTOP))
	f.alone(t, at, pauseBound)
	f.must(t, f.Node(f.v.away).Kill(), f.StartNode(f.Node(f.v.away)))
	f.whole(t)
}

// linkCut wants the coordinator to go on without the other site, and nobody to touch the domains.
func (f *failing) linkCut(t *testing.T, set func(lab.Link)) {
	states := func() string { return f.ctl(t, f.at, "cluster", "domains", "show", "-o", "json") }
	before, at := states(), time.Now()
	set(lab.Link{Lost: true})
	f.alone(t, at, pauseBound)
	until(t, "12 s of writes", 30*time.Second, func() (bool, error) { // longer than a registration lives
		acks := f.w.acks(t)
		return len(acks) > 0 && acks[len(acks)-1].Sub(at) > 12*time.Second, nil
	})
	if after := states(); domainStates(after) != domainStates(before) {
		t.Errorf("the domains were changed:\nbefore: %s\nafter:  %s", before, after)
	}
	set(lab.Link{})
	f.whole(t)
}

// bitsFlip damages what the sites send each other, in a way that TCP does not notice: TLS ends the connections again and again, nobody takes what is
// wrong for right, and the consumer sees no more than that writes are slow.
func (f *failing) bitsFlip(t *testing.T) {
	m, at := f.mark(t, f.at), time.Now()
	set := func(l lab.Link) { f.SetLink(alpha, beta, l); f.SetLink(beta, alpha, l) }
	set(lab.Link{Damaged: 100})
	until(t, "TLS ends a connection between the sites", 30*time.Second, func() (bool, error) {
		var said []string
		for _, msg := range []string{"session ended", "peer is down"} {
			for _, e := range m.since(t, msg) {
				if said = append(said, e.raw); strings.Contains(e.raw, "bad record MAC") {
					return true, nil
				}
			}
		}
		return false, errors.New(strings.Join(said, "\n"))
	})
	set(lab.Link{})
	f.whole(t)
	t.Logf("writes paused for %v", f.w.pause(t, at).Round(time.Millisecond))
}

// domainStates are the states in the output of `cluster domains show -o json`, without what changes by itself.
func domainStates(out string) string {
	var states []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, `"state"`) || strings.Contains(line, `"epoch"`) {
			states = append(states, strings.TrimSpace(line))
		}
	}
	return strings.Join(states, "\n")
}

// kvdbLost takes the majority of the kvdb away: nothing happens (F8). Whatever needs it then waits: the eviction of a replica whose node dies (F9), or
// to which the link is cut (F10), and nothing is confirmed that is not at both.
func (f *failing) kvdbLost(t *testing.T) {
	bring := func() { f.must(t, f.Start(beta), f.Start(gamma)) }
	// lose returns a mark from before, since which nothing was evicted: a busy machine may do that to a replica at any time, while there is a kvdb.
	lose := func() mark {
		for {
			f.whole(t)
			m := f.mark(t, f.at)
			for _, site := range []string{beta, gamma} {
				k, err := f.KVDB(site)
				if err == nil {
					err = k.Kill()
				}
				f.must(t, err)
			}
			if len(m.since(t, "replica evicted")) == 0 {
				return m
			}
			bring()
		}
	}
	stalled := func(m mark) {
		t.Helper()
		until(t, "writes stall", 30*time.Second, func() (bool, error) {
			a := f.w.acks(t)
			return time.Since(a[len(a)-1]) > 5*time.Second, errors.New("they do not")
		})
		if es := m.since(t, "replica evicted"); len(es) > 0 {
			t.Fatalf("evicted without the kvdb: %s", es[0].raw)
		}
	}
	m := lose()
	at := time.Now()
	until(t, "12 s of writes", 30*time.Second, func() (bool, error) {
		acks := f.w.acks(t)
		return len(acks) > 0 && acks[len(acks)-1].Sub(at) > 12*time.Second, nil
	})
	if p := f.w.pause(t, at); p > 3*time.Second {
		t.Errorf("F8: writes paused for %v", p)
	} else {
		t.Logf("F8: writes paused for %v", p.Round(time.Millisecond))
	}
	f.refused(t, f.at, 9, []string{"kvdb"}, "--timeout", "5s", "volume", "create", "never", "--size", "4Mi")

	f.must(t, f.Node(f.v.away).Kill())
	stalled(m)
	at = time.Now()
	bring()
	f.whole(t)
	t.Logf("F9: writes stalled; whole again %v after the kvdb was back", time.Since(at).Round(time.Millisecond))

	m = lose()
	f.SetLink(alpha, beta, lab.Link{Lost: true})
	f.SetLink(beta, alpha, lab.Link{Lost: true})
	stalled(m)
	f.SetLink(alpha, beta, lab.Link{})
	f.SetLink(beta, alpha, lab.Link{})
	at = time.Now()
	f.w.more(t, 100, 30*time.Second)
	t.Logf("F10: writes stalled; they went on %v after the link was back, without a kvdb", time.Since(at).Round(time.Millisecond))
	bring()
	f.whole(t)
}

// computeLost attaches on the node of the site without a replica, and kills it.
func (f *failing) computeLost(t *testing.T) {
	f.close(t)
	f.open(t, f.v.spare)
	f.w.more(t, 100, 20*time.Second)
	at := time.Now()
	f.must(t, f.Node(f.v.spare).Kill())
	t.Logf("the consumer: %s", f.w.failed(t, 20*time.Second))
	f.at, f.uri = f.v.home, f.attach(t, f.v.home, f.v.name)
	t.Logf("attached on the node with the disk %v after the kill", time.Since(at).Round(time.Millisecond))
	f.w.check(t, f.uri)
	f.w.start(t, f.uri)
	f.must(t, f.StartNode(f.Node(f.v.spare)))
	f.online(t, f.v.spare)
	f.whole(t)
}

// lastCopyLosesPower attaches on the node of the site without a replica, takes the replica beside it away, and has the node of the other one
// restart in another boot: what was confirmed and not flushed may be lost, so the attachment ends.
func (f *failing) lastCopyLosesPower(t *testing.T) {
	f.close(t)
	f.open(t, f.v.spare)
	f.w.more(t, 100, 20*time.Second)
	f.must(t, f.Node(f.v.home).Kill())
	f.inSync(t, f.at, f.v.name, 30*time.Second, f.v.away)
	f.w.more(t, 100, 20*time.Second)
	m, away := f.mark(t, f.at), f.Node(f.v.away)
	at := time.Now()
	f.must(t, away.Kill())
	away.Rebooted()
	f.must(t, f.StartNode(away))
	why := f.w.failed(t, 20*time.Second)
	t.Logf("the consumer, %v after the power cut: %s", time.Since(at).Round(time.Millisecond), why)
	if es := m.since(t, "volume lost"); len(es) != 1 || !strings.Contains(es[0].raw, replication.ErrPoisoned.Error()) {
		t.Errorf("in the log of %s: %v", f.at, es)
	}
	f.must(t, f.StartNode(f.Node(f.v.home)))
	f.online(t, f.v.home)
	f.uri = f.attach(t, f.at, f.v.name)
	f.w.check(t, f.uri)
	f.detach(t, f.at, f.v.name)
	f.open(t, f.v.home)
	f.whole(t)
}

// allLost kills every process of every site at once, and starts all again.
func (f *failing) allLost(t *testing.T) {
	var errs []error
	for _, site := range []string{alpha, beta, gamma} {
		errs = append(errs, f.Kill(site))
	}
	f.must(t, errs...)
	f.w.failed(t, 20*time.Second)
	at := time.Now()
	for _, site := range []string{alpha, beta, gamma} {
		f.must(t, f.Start(site))
	}
	for _, n := range []string{"a1", "a2", "b1", "b2"} {
		f.online(t, n)
	}
	f.uri = f.attach(t, f.at, f.v.name)
	t.Logf("attached %v after the start", time.Since(at).Round(time.Millisecond))
	f.w.check(t, f.uri)
	f.w.start(t, f.uri)
	f.whole(t)
}

// paused stops the coordinator for less than anybody suspects it.
func (f *failing) paused(t *testing.T) {
	m, at := f.mark(t, f.at), time.Now()
	f.must(t, f.Node(f.at).Signal(syscall.SIGSTOP))
	<-time.After(time.Second) // the fault itself: a pause of this length
	f.must(t, f.Node(f.at).Signal(syscall.SIGCONT))
	f.whole(t)
	for _, msg := range []string{"replica evicted", "volume lost"} {
		if es := m.since(t, msg); len(es) > 0 {
			t.Errorf("after a pause of 1 s: %s", es[0].raw)
		}
	}
	t.Logf("writes paused for %v", f.w.pause(t, at).Round(time.Millisecond))
}

package core

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/tandem-storage/tandem/replication"
)

// TestScenarios runs the stories in testdata in a world in which everything
// happens in the order in which it was caused, a millisecond apart, and prints
// what the nodes say to each other. -rewrite writes the traces anew; they are
// meant to be read then.
//
//	world nodes=2 [at=n0] (attached there already) [protection=max_protection]
//	      [evict-slow=20] (milliseconds; 6 windows of 100 ms, a rest of 1 s)
//	      [stall=100] (milliseconds until a request fails) [slots=1] (of each activity log)
//	fail-flush n0
//	handover n0 n1 | keep-it n0 (it is called off)
//	attach n0 | resume n0 (the attachment that its process had) | detach | crash n0 | power n0 | stop n0 | start n0 | damage-log n0 (that is not running)
//	cut n0 n1 | damage n0 n1 (payloads arrive damaged) | heal
//	delay n0 n1 (what is on the way in n0's session with n1 now) | arrive (it comes, whatever has happened since)
//	left n0 write 0 | left n0 read 0 (of a consumer that somebody else has taken the volume from)
//	kvdb down | kvdb up | kvdb hold | kvdb tell (outcomes wait in between)
//	kvdb cut n0 (does not reach it)
//	kvdb lose CAUSE (that change takes effect, and its coordinator does not reach the kvdb any more) | kvdb back
//	drain n0 | keep n0 (its cluster domain is deactivated by plan)
//	slow n0 30 (its disk takes so many milliseconds for each request; 0: as fast as others)
//	load 700    writes for so many milliseconds, one at a time or so; what is said of writes and flushes is not printed
//	silent n0 | heard n0 (its beats are not heard, its connections stay)
//	grow 4608   asks for so many sectors
//	crowded n0 | roomy n0 (the pool) | full n0 | empty n0 | fail n0 | unreadable n0 | readable n0
//	pause n0 | resume n0 (its process; time goes on)
//	close n0 | open n0 (its storage, under a living process) | hang n0 | unhang n0
//	write 0 | write 0 fua | read 0 | trim 0 | flush
//	rot n0 0 [7] (the sector there, with which content) | rot-sum n0 0 (its checksum) | differ n0 0 (and its replica vouches for it)
//	verify | stop-verify
//	harm        prints which sectors cannot be healed, and how many were
//	run 100     lets as many milliseconds pass
//	await TEXT  lets time pass until the trace has TEXT
//	state       prints who is in sync and why writes wait
//	members     prints what the configuration says of each replica
//
// Each command may be followed by several lines of the same kind.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var w *simWorld
		var out strings.Builder
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out.Reset()
			if d.Cmd == "world" {
				var nodes int
				d.ScanArgs(t, "nodes", &nodes)
				w = newSimWorld(nodes, rand.New(rand.NewPCG(1, 1)))
				w.fifo = true
				w.fail = func(f string, a ...any) { d.Fatalf(t, f, a...) }
				w.trace = func(f string, a ...any) { fmt.Fprintf(&out, f+"\n", a...) }
				w.said = out.String
				if d.HasArg("protection") {
					w.cfg.Protection = replication.MaxProtection
				}
				if d.HasArg("stall") {
					var ms int64
					d.ScanArgs(t, "stall", &ms)
					w.opts.StallTimeout = ms * 1e6
				}
				if d.HasArg("evict-slow") {
					d.ScanArgs(t, "evict-slow", &w.opts.EvictSlow)
					w.opts.EvictSlow, w.opts.SlowRest = w.opts.EvictSlow*1e6, 1e9
					w.opts.SlowWindow, w.opts.SlowWindows, w.opts.SlowWrites = 100e6, 6, 10
				}
				if d.HasArg("slots") {
					d.ScanArgs(t, "slots", &w.slots)
					for _, n := range w.nodes {
						n.crash(false)
						n.start()
					}
				}
				if d.HasArg("at") {
					var n string
					d.ScanArgs(t, "at", &n)
					w.command(t, d, []string{"attach", n})
					w.command(t, d, []string{"run", "50"})
				}
				return ""
			}
			lines := strings.Split(d.Input, "\n")
			for _, l := range lines {
				if f := strings.Fields(l); len(f) > 0 {
					w.command(t, d, f)
				}
			}
			return out.String()
		})
	})
}

// command carries out one line of a scenario.
func (w *simWorld) command(t *testing.T, d *datadriven.TestData, f []string) {
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	node := func(i int) *simNode {
		k := slices.IndexFunc(w.nodes, func(n *simNode) bool { return string(n.id) == arg(i) })
		if k < 0 {
			d.Fatalf(t, "no node %q", arg(i))
		}
		return w.nodes[k]
	}
	num := func() (n int) {
		if _, err := fmt.Sscan(arg(1), &n); err != nil {
			d.Fatalf(t, "%v: %v", f, err)
		}
		return n
	}
	switch f[0] {
	case "grow":
		w.grow(w.client.at, int64(num())*sector)
	case "attach":
		w.client.lost()
		w.client.at = node(1)
		node(1).attach()
	case "resume":
		w.client.at = node(1)
		node(1).resume()
	case "handover":
		node(1).handOver(node(2))
	case "fail-flush":
		node(1).disk.failFlush = true
	case "keep-it":
		node(1).coord.Keep(node(1).clock(), errNotHandedOver)
		node(1).drainCoord()
	case "detach":
		w.client.at.coord.Detach(w.client.at.clock())
		w.client.at.drainCoord()
	case "crash", "power":
		node(1).crash(f[0] == "power")
	case "stop":
		n := node(1)
		n.end()
		n.rep.CloseSessions()
		n.drainRep()
		n.stop = true
	case "start":
		node(1).start()
	case "cut":
		node(1).cutTo[node(2)], node(2).cutTo[node(1)] = true, true
	case "damage-log":
		node(1).disk.log = newSimActivity(true)
	case "reset":
		node(1).resetConns()
	case "heal":
		w.healLinks()
	case "delay":
		w.delay(node(1), node(2))
	case "arrive":
		w.arrive()
	case "damage":
		node(1).damage[node(2)], node(2).damage[node(1)] = true, true
	case "kvdb":
		w.kvdbCommand(arg(1), strings.Join(f[min(2, len(f)):], " "))
	case "drain", "keep":
		node(1).drain(f[0] == "drain")
	case "silent", "heard":
		node(1).silence(f[0] == "silent")
	case "full", "empty":
		node(1).disk.full = f[0] == "full"
	case "fail":
		node(1).disk.failWrite = true
	case "unreadable", "readable":
		node(1).disk.failRead = f[0] == "unreadable"
	case "crowded", "roomy":
		node(1).crowd(f[0] == "crowded")
	case "pause", "continue":
		node(1).paused = f[0] == "pause"
	case "close", "open":
		node(1).disk.closed = f[0] == "close"
	case "hang":
		node(1).disk.hung = true
	case "unhang":
		node(1).unhang()
	case "slow":
		ms, err := strconv.ParseInt(arg(2), 10, 64)
		if err != nil {
			d.Fatalf(t, "%v: %v", f, err)
		}
		node(1).disk.slow = ms * 1e6
	case "load":
		w.load(int64(num()) * 1e6)
	case "rot", "rot-sum", "differ":
		w.spoil(f[0], node(1), arg(2), arg(3))
	case "resync":
		var may []int // members by their nodes
		for i, m := range w.client.at.coord.m {
			if f[1] == "go" || f[1] == string(w.client.at.coord.cfg.Members[m.id].Node) {
				may = append(may, i)
			}
		}
		w.client.at.coord.SetResync(w.client.at.clock(), 0, may...)
		w.client.at.drainCoord()
	case "policy":
		w.policyCommand(t, d, f[1:])
	case "verify":
		w.client.at.coord.StartVerify(w.client.at.clock(), 0)
		w.client.at.drainCoord()
	case "stop-verify":
		w.client.at.coord.StopVerify(w.client.at.clock())
		w.client.at.drainCoord()
	case "harm":
		d := w.client.at.coord.Damage()
		w.trace("lost %v, differs %v, healed %v", d.Lost, d.Differs, w.client.at.coord.Healed())
	case "write":
		var flags replication.MessageFlags
		if arg(2) == "fua" {
			flags = replication.FlagFUA
		}
		w.client.write(num(), flags)
	case "read":
		w.client.read(num())
	case "trim":
		w.client.zero(num(), replication.MsgTrim)
	case "flush":
		w.client.flush()
	case "left":
		w.leftBehind(node(1), arg(2), arg(3))
	case "run":
		for end := w.now + int64(num())*1e6; w.now < end; {
			w.step()
		}
	case "await":
		text, begin, end := strings.Join(f[1:], " "), len(w.said()), w.now+5e9
		for !strings.Contains(w.said()[begin:], text) {
			if w.step(); w.now > end {
				d.Fatalf(t, "%q did not happen; what did:\n%s", text, w.said())
			}
		}
	case "state":
		if w.client.at == nil {
			w.trace("nobody serves")
			return
		}
		c := w.client.at.coord
		w.trace("in sync %v, stall %q, unreconciled %d", w.inSync(), c.Stall(), c.Unreconciled())
	case "members":
		for _, n := range w.nodes {
			m := w.cfg.Members[n.rid]
			w.trace("%s %s %s", n.id, m.State, m.Reason)
		}
	default:
		d.Fatalf(t, "unknown command %q", f[0])
	}
}

// load writes for d ns.
func (w *simWorld) load(d int64) {
	trace := w.trace
	w.trace = func(f string, a ...any) {
		if text := fmt.Sprintf(f, a...); !loadTalk.MatchString(text) {
			trace("%s", text)
		}
	}
	for end := w.now + d; w.now < end; {
		w.client.write(int(w.now/1e6)%w.client.at.sectors(), 0)
		w.step()
	}
	w.trace = trace
}

// loadTalk is what is said of writes and flushes all the time.
var loadTalk = regexp.MustCompile(`^consumer: |^n\d log: |^n\d (->|<-) n\d (write|resync-write|flush|ack|stable|hash-req|hash|read|data) `)

// delay keeps back what is on the way from n to the replica of o.
func (w *simWorld) delay(n, o *simNode) {
	q := n.sess[slices.Index(w.nodes, o)].there
	w.late, q.fs = append(w.late, q.fs...), nil
	w.ready = slices.DeleteFunc(w.ready, func(r *simQueue) bool { return r == q })
}

// arrive delivers that, in order.
func (w *simWorld) arrive() {
	q := &simQueue{}
	for _, e := range w.late {
		w.enqueue(q, e)
	}
	w.late = nil
}

// leftBehind lets a consumer that n serves still, as far as n knows, make a request. What it
// writes may never be seen, and what it reads was true when it asked, or later.
func (w *simWorld) leftBehind(n *simNode, what, sectorIndex string) {
	k, err := strconv.Atoi(sectorIndex)
	if err != nil || n.coord == nil {
		w.fail("%s is not left behind with sector %q: %v", n.id, sectorIndex, err)
	}
	io := w.client.newIO()
	io.Off, io.Len = simSectors[k]*sector, sector
	if io.Kind = replication.MsgWrite; what == "read" {
		s := &simStray{coord: n.coord, sector: k, may: map[uint64]bool{w.history.known[k]: true}}
		w.strays = append(w.strays, s)
		io.Kind, io.User = replication.MsgRead, s
	} else {
		binary.LittleEndian.PutUint64(io.Data, 1<<62)
	}
	w.trace("consumer left behind on %s: %s sector %d", n.id, what, k)
	n.coord.Propose(n.clock(), io)
	n.drainCoord()
}

func (w *simWorld) kvdbCommand(what, cause string) {
	switch what {
	case "cut":
		for _, n := range w.nodes {
			n.kvCut = n.kvCut || string(n.id) == cause
		}
	case "lose":
		w.kvLose = cause
	case "back":
		w.reachKVDB()
	case "hold":
		w.kvHold = true
	case "tell":
		w.kvHold = false
		for _, f := range w.kvHeld {
			w.once(nil, f)
		}
		w.kvHeld = nil
	default:
		w.kvDown = what == "down"
	}
}

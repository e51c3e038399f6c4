package core

import (
	"fmt"
	"math/rand/v2"
	"slices"
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
//	world nodes=2 [protection=max_protection]
//	attach n0 | detach | crash n0 | power n0 | stop n0 | start n0
//	cut n0 n1 | heal | kvdb down | kvdb up | full n0 | empty n0 | fail n0 | hang n0 | unhang n0
//	write 0 | write 0 fua | read 0 | trim 0 | flush
//	run 100     lets as many milliseconds pass
//	state       prints who is in sync and why writes wait
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
				if d.HasArg("protection") {
					w.cfg.Protection = replication.MaxProtection
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
	case "attach":
		w.client.lost()
		w.client.at = node(1)
		node(1).attach()
	case "detach":
		w.client.at.coord.Detach(w.now)
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
	case "heal":
		w.healLinks()
	case "kvdb":
		w.kvDown = arg(1) == "down"
	case "full", "empty":
		node(1).disk.full = f[0] == "full"
	case "fail":
		node(1).disk.failWrite = true
	case "hang":
		node(1).disk.hung = true
	case "unhang":
		node(1).unhang()
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
	case "run":
		for end := w.now + int64(num())*1e6; w.now < end; {
			w.step()
		}
	case "state":
		c := w.client.at.coord
		w.trace("in sync %v, stall %q, unreconciled %d", w.inSync(), c.Stall(), c.Unreconciled())
	default:
		d.Fatalf(t, "unknown command %q", f[0])
	}
}

package arbiter

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestDecisions runs the scripts of testdata. Commands:
//
//	domains        one "name STATE" a line: replaces the view
//	volumes        one "name [strict] [at=node/domain[/offline]] domain:STATE ..." a line; STATE IN_SYNC is in the in-sync set; "name unreadable" has no configuration
//	decide         activate|drain|fence <domain> [accept=a,b]
//	settle         <domain> [accept=a,b]
//	sync           <domain>
//	lose           <domain>
func TestDecisions(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var v View
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "domains":
				v.Domains = parseDomains(t, d)
				return ""
			case "volumes":
				v.Volumes = parseVolumes(t, d)
				return ""
			case "decide":
				q := Question{Command: Command(d.CmdArgs[0].Key), Domain: d.CmdArgs[1].Key, Accept: accept(d)}
				a := Decide(v, q)
				out := fmt.Sprintf("%s -> %s: %s\n", v.Domains[q.Domain], a.Next, a.Why)
				for _, vol := range a.LastCopies {
					out += "last copy of " + vol.Name + "\n"
				}
				for _, id := range a.Accepted {
					out += "accepted " + id + "\n"
				}
				return out
			case "settle":
				dom := d.CmdArgs[0].Key
				p := Settle(v, dom, accept(d))
				out := fmt.Sprintf("%s -> %s\n", v.Domains[dom], p.Next)
				for _, vol := range p.Evict {
					out += "evict " + vol.Name + "\n"
				}
				for _, vol := range p.Waiting {
					out += "wait for " + vol.Name + "\n"
				}
				for _, b := range p.Blocked {
					out += fmt.Sprintf("blocked %s: %s: %s\n", b.Volume.Name, b.Cause, b.Text())
				}
				return out
			case "lose":
				out := ""
				for _, l := range Lose(v, d.CmdArgs[0].Key) {
					out += l.Volume.Name + ": " + l.Text() + "\n"
				}
				return out
			case "sync":
				return fmt.Sprintf("%+v\n", SyncOf(v.Volumes, d.CmdArgs[0].Key))
			default:
				d.Fatalf(t, "unknown command %s", d.Cmd)
				return ""
			}
		})
	})
}

func accept(d *datadriven.TestData) []string {
	for _, a := range d.CmdArgs {
		if a.Key == "accept" {
			return a.Vals
		}
	}
	return nil
}

func parseDomains(t *testing.T, d *datadriven.TestData) map[string]State {
	m := map[string]State{}
	for line := range strings.Lines(d.Input) {
		name, s, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !State(s).Valid() {
			d.Fatalf(t, "%s: no such state: %q", name, s)
		}
		m[name] = State(s)
	}
	return m
}

func parseVolumes(t *testing.T, d *datadriven.TestData) []Volume {
	var vols []Volume
	for line := range strings.Lines(d.Input) {
		f := strings.Fields(line)
		v := Volume{ID: f[0] + "-id", Name: f[0]}
		for _, w := range f[1:] {
			if w == "strict" {
				v.Strict = true
				continue
			}
			if at, ok := strings.CutPrefix(w, "at="); ok {
				p := strings.Split(at, "/")
				v.Coordinator = Coordinator{Node: p[0], Domain: p[1], Online: len(p) == 2}
				continue
			}
			if w == "unreadable" {
				v.Unreadable = "damaged"
				continue
			}
			dom, s, ok := strings.Cut(w, ":")
			if !ok {
				d.Fatalf(t, "bad replica %q", w)
			}
			v.Replicas = append(v.Replicas, Replica{Node: "n-" + dom, Domain: dom, State: s, InSync: s == "IN_SYNC"})
		}
		vols = append(vols, v)
	}
	return vols
}

// TestEveryTransition walks all states and commands and holds the table to the
// diagram of the protocol.
func TestEveryTransition(t *testing.T) {
	all := []State{Active, Standby, Draining, Inactive, Fenced, Rejoining}
	allowed := map[State][]State{
		Active:    {Draining, Fenced},
		Standby:   {Active, Draining, Fenced},
		Draining:  {Active, Inactive, Fenced},
		Inactive:  {Rejoining, Fenced},
		Fenced:    {Rejoining},
		Rejoining: {Active, Draining, Fenced},
	}
	for _, s := range all {
		for _, c := range []Command{Activate, Drain, Fence} {
			d := Decide(View{Domains: map[string]State{"a": s}}, Question{Domain: "a", Command: c})
			if d.Next != s && !slices.Contains(allowed[s], d.Next) {
				t.Errorf("%s by %s becomes %s", s, c, d.Next)
			}
			if d.Why == "" {
				t.Errorf("%s by %s: no reason", s, c)
			}
		}
		if p := Settle(View{Domains: map[string]State{"a": s}}, "a", nil); p.Next != s && !slices.Contains(allowed[s], p.Next) {
			t.Errorf("%s becomes %s by itself", s, p.Next)
		}
	}
}

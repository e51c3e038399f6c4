package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// follower is a client that goes where its volume goes.
type follower struct {
	proc     *lab.Process
	log, uri string
}

func newFollower(t *testing.T, uri string, seed int) *follower {
	t.Helper()
	if _, err := lab.Run(t.Context(), python, "-c", "import nbd"); err != nil {
		t.Skip("no libnbd for Python (make deps installs python3-libnbd)")
	}
	script, err := filepath.Abs("testdata/follower.py")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := &follower{log: filepath.Join(dir, "log"), uri: filepath.Join(dir, "uri")}
	f.moved(t, uri)
	if f.proc, err = lab.StartProcess("follower", f.log, nil, python, script, f.uri, strconv.Itoa(seed)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.proc.Kill() })
	until(t, "the client is at work", 20*time.Second, func() (bool, error) { return strings.Contains(lab.Tail(f.log, 1), "began"), nil })
	return f
}

// moved tells the client where the volume is.
func (f *follower) moved(t *testing.T, uri string) {
	t.Helper()
	tellWhere(t, f.uri, uri)
}

// tellWhere writes a URI into a file that a client reads before it connects.
func tellWhere(t *testing.T, file, uri string) {
	t.Helper()
	if err := os.WriteFile(file+".new", []byte(uri), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// end ends the client and asserts that it saw no error and nothing lost or stale.
func (f *follower) end(t *testing.T) {
	t.Helper()
	if err := f.proc.Stop(syscall.SIGTERM, time.Minute); err != nil {
		t.Fatal(err, lab.Tail(f.log, 5))
	}
	var r struct {
		Requests, Reconnects int
		Errors, Wrong        []string
		Pause                int `json:"longest_pause_ms"`
	}
	said, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &r); err != nil {
		t.Fatalf("the client printed %q: %v", said, err)
	}
	if len(r.Errors) > 0 || len(r.Wrong) > 0 || r.Requests == 0 || r.Reconnects <= 4 {
		t.Fatalf("%d requests over %d connections\nerrors: %s\nlost or stale: %s", r.Requests, r.Reconnects, strings.Join(r.Errors, "\n"), strings.Join(r.Wrong, "\n"))
	}
	t.Logf("%d requests, longest pause %d ms", r.Requests, r.Pause)
}

// moves is what `cluster domains switchover -o json` prints.
type moves struct {
	Moves []struct {
		Path   string
		Action string
		Text   string
		Done   bool
		Hold   int64  `json:"hold_us,string"`
		To     string `json:"to_node"`
		Volume string `json:"volume_name"`
	}
}

// switchover asks a node to move a volume.
func (c *cluster) switchover(t *testing.T, ask, volume, to string, more ...string) (m moves, err error) {
	t.Helper()
	out, err := c.Ctl(t.Context(), c.Node(ask), append([]string{"--timeout", "50s", "-o", "json", "cluster", "domains", "switchover", "--to", to, "--volume", volume, "--reason", "test"}, more...)...)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal([]byte(out), &m); err != nil || len(m.Moves) != 1 {
		return m, lab.Final(fmt.Errorf("switchover printed %q: %w", out, err))
	}
	return m, nil
}

// where waits until a volume is served, and returns the node and what a consumer opens there.
func (c *cluster) where(t *testing.T, v vol) (node, uri string) {
	t.Helper()
	until(t, v.name+" is served", time.Minute, func() (bool, error) {
		for _, n := range []string{v.home, v.away} {
			out, err := c.Ctl(t.Context(), c.Node(n), "--timeout", "5s", "volume", "inspect", v.name, "-o", "json")
			var a struct {
				Volume struct {
					Attachment *struct{ Node, Path string }
				}
			}
			if err == nil && json.Unmarshal([]byte(out), &a) == nil && a.Volume.Attachment != nil && a.Volume.Attachment.Node == n && a.Volume.Attachment.Path != "" {
				node, uri = n, a.Volume.Attachment.Path
				return true, nil
			}
		}
		return false, nil
	})
	return node, uri
}

// delay makes every packet between sites so much later.
func (c *cluster) delay(d time.Duration) {
	for _, a := range []string{alpha, beta, gamma} {
		for _, b := range []string{alpha, beta, gamma} {
			if a != b {
				c.SetLink(a, b, lab.Link{Delay: d})
			}
		}
	}
}

// TestSwitchover moves a volume there and back under a client that writes all the time, then kills and freezes either node in the
// middle. The client gets no error, and finds what was confirmed to it.
func TestSwitchover(t *testing.T) {
	needRoot(t, "/dev/net/tun")
	need(t, "ip", "nsenter")
	c := own(t, func(s *lab.Spec) { s.Networks = true })
	v := c.create(t, "switchover", "64Mi")
	rng := seeded(t)
	f := newFollower(t, c.attach(t, v.home, v.name), rng.IntN(1<<30))
	other := map[string]string{v.home: beta, v.away: alpha}

	chapters(t, chapter{"what is not done", func(t *testing.T) {
		m, err := c.switchover(t, v.away, v.name, beta, "--dry-run")
		if err != nil || m.Moves[0].Done || m.Moves[0].To != v.away || !strings.HasSuffix(m.Moves[0].Action, "MOVE") {
			t.Errorf("%+v, %v", m, err)
		}
		if m, err = c.switchover(t, v.away, v.name, alpha); err != nil || m.Moves[0].Done || !strings.HasSuffix(m.Moves[0].Action, "NONE") {
			t.Errorf("%+v, %v", m, err)
		}
		c.refused(t, v.home, 4, []string{"nowhere"}, "cluster", "domains", "switchover", "--to", "nowhere", "--volume", v.name)
		if at, _ := c.where(t, v); at != v.home {
			t.Errorf("it is on %s", at)
		}
	}}, chapter{"there and back", func(t *testing.T) {
		at := v.home
		holds := map[time.Duration][]time.Duration{} // by the round trip between sites
		for i := range 12 {
			delay := time.Duration(i/6) * 5 * time.Millisecond
			c.delay(delay)
			m, err := c.switchover(t, []string{v.home, v.away, c.third(v.spare)}[i%3], v.name, other[at])
			if err != nil || !m.Moves[0].Done {
				t.Fatalf("%+v, %v", m, err)
			}
			f.moved(t, m.Moves[0].Path)
			at = m.Moves[0].To
			holds[2*delay] = append(holds[2*delay], (time.Duration(m.Moves[0].Hold) * time.Microsecond).Round(time.Millisecond))
		}
		c.delay(0)
		t.Logf("requests were held, by round trip: %v", holds)
	}}, chapter{"a node dies in the middle", func(t *testing.T) {
		for round := range 6 {
			at, uri := c.where(t, v)
			f.moved(t, uri)
			c.inSync(t, at, v.name, time.Minute, v.home, v.away)
			victim := []string{v.home, v.away}[round%2]
			what := "source"
			if victim != at {
				what = "target"
			}
			var moving sync.WaitGroup
			moving.Go(func() {
				if _, err := c.switchover(t, c.third(v.spare), v.name, other[at]); err != nil {
					t.Logf("not moved: %.300s", err)
				}
			})
			<-time.After(time.Duration(50+rng.IntN(150)) * time.Millisecond) // tandemctl has to start
			if round >= 4 {
				what += " is frozen"
				if err := c.Node(victim).Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				moving.Wait()
				if err := c.Node(victim).Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := c.Node(victim).Kill(); err != nil {
					t.Fatal(err)
				}
				if err := c.StartNode(c.Node(victim)); err != nil {
					t.Fatal(err)
				}
				moving.Wait()
			}
			now, uri := c.where(t, v)
			f.moved(t, uri)
			t.Logf("%s: it was on %s and is on %s", what, at, now)
		}
	}})
	at, uri := c.where(t, v)
	f.moved(t, uri)
	f.end(t)
	c.inSync(t, at, v.name, time.Minute, v.home, v.away)
	c.detach(t, at, v.name)
	c.identical(t, v.name)
}

package e2e

import (
	"bytes"
	"crypto/sha3"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// chain is a consumer that writes one tag after the other, each to one of several volumes, when the one before is confirmed.
type chain struct {
	load
	seed int64
}

func newChain(t *testing.T) *chain {
	t.Helper()
	w := newWriter(t) // libnbd is needed, and a seed
	c := &chain{seed: w.rng.Int64N(1 << 30)}
	c.begin(t, func(f []string) (ns string, ok bool) { return f[len(f)-1], len(f) == 4 })
	return c
}

// start starts the consumer, or starts it again: then it finds all that was confirmed to it before. Each of where is a URI, or a file that has one.
func (c *chain) start(t *testing.T, where ...string) {
	t.Helper()
	script, err := filepath.Abs("testdata/chain.py")
	if err != nil {
		t.Fatal(err)
	}
	p, err := lab.StartProcess("chain", c.log, nil, append([]string{python, script, c.ledger, strconv.FormatInt(c.seed, 10)}, where...)...)
	if err != nil {
		t.Fatal(err)
	}
	c.proc = p
	c.more(t, 50, 20*time.Second)
}

// tags are those that lie in the chunk files of a replica.
func (c *cluster) tags(t *testing.T, ask, volume, node string) map[int]bool {
	t.Helper()
	v := c.inspect(t, ask, volume)
	pattern := filepath.Join(c.Node(node).Pool(), "replicas", strings.ReplaceAll(v.Volume.ID, "-", "")+"."+strings.ReplaceAll(v.replica(node).ID, "-", ""), "head")
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("no replica of %s on %s: %v", volume, node, err)
	}
	entries, err := os.ReadDir(found[0])
	if err != nil {
		t.Fatal(err)
	}
	tags := map[int]bool{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(found[0], e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for len(data) >= 4096 {
			if bytes.HasPrefix(data, []byte("tandemCH")) {
				tags[int(binary.LittleEndian.Uint64(data[8:]))] = true
			}
			data = data[4096:]
		}
	}
	return tags
}

// sideView is what `group inspect` tells of a domain.
type sideView struct {
	Domain      string `json:"domain"`
	InSync      bool   `json:"in_sync"`
	Consistent  bool   `json:"consistent"`
	Reason      string `json:"reason"`
	Split       bool   `json:"split"`
	MayFailOver bool   `json:"may_fail_over"`
}

func (c *cluster) side(t *testing.T, node, group, domain string) (state string, side sideView) {
	t.Helper()
	var g struct {
		Group struct {
			State string     `json:"state"`
			Sides []sideView `json:"sides"`
		} `json:"group"`
	}
	out := c.ctl(t, node, "group", "inspect", group, "-o", "json")
	if err := json.Unmarshal([]byte(out), &g); err != nil {
		t.Fatalf("group inspect printed %q: %v", out, err)
	}
	for _, s := range g.Group.Sides {
		if s.Domain == domain {
			return g.Group.State, s
		}
	}
	t.Fatalf("group inspect tells nothing of %s: %s", domain, out)
	return "", sideView{}
}

// TestGroup has two volumes in a group, attached on the two nodes of a site, and a consumer whose writes depend on each other across them. It is cut under
// load, then the way of one volume to the other site fails before that of the other one: what the far site has is an image of both at one moment.
func TestGroup(t *testing.T) {
	c := own(t, nil)
	vs := []vol{c.create(t, "data", "64Mi"), {}}
	first := c.Node(vs[0].away) // the replicas in beta are to be on two nodes
	heard := []mark{c.mark(t, "a1"), c.mark(t, "a2")}
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	c.offline(t, "a1", first.Name)
	vs[1] = c.createBy(t, "a1", "log", "64Mi")
	if err := c.StartNode(first); err != nil {
		t.Fatal(err)
	}
	c.online(t, first.Name)
	for _, m := range heard { // else the first attach splits the group
		m.await(t, "peer is up", 20*time.Second)
	}
	c.ctl(t, "a1", "group", "create", "db", "--volumes", "data,"+vs[1].name)
	c.refused(t, "a1", 4, []string{"db"}, "group", "create", "other", "--volumes", "data")
	c.refused(t, "a1", 4, []string{"db"}, "volume", "delete", "data", "--force")
	w := newChain(t)
	// The coordinators are on two nodes, whatever placement did.
	w.start(t, c.attach(t, "a1", vs[0].name), c.attach(t, "a2", vs[1].name))

	chapters(t, chapter{"cut", func(t *testing.T) {
		cuts, longest := 0, uint64(0)
		for range 10 {
			var cut struct {
				Hold      string `json:"hold_us"`
				Positions []struct {
					Name   string `json:"name"`
					Writes string `json:"writes"`
				} `json:"positions"`
			}
			out := c.ctl(t, "b1", "group", "cut", "db", "--hold", "5s", "-o", "json")
			if err := json.Unmarshal([]byte(out), &cut); err != nil || len(cut.Positions) != 2 {
				t.Fatalf("group cut printed %q: %v", out, err)
			}
			writes := [2]int{}
			for i, p := range cut.Positions { // by name, as they were attached
				writes[i], _ = strconv.Atoi(p.Writes)
			}
			if first := w.prefix(t, writes); first != writes[0]+writes[1] {
				t.Errorf("the cut has %v writes of the two volumes: the chain had never come to that", writes)
			}
			hold, _ := strconv.ParseUint(cut.Hold, 10, 64)
			longest, cuts = max(longest, hold), cuts+1
			w.more(t, 20, 20*time.Second)
		}
		t.Logf("%d cuts, the longest hold %v", cuts, time.Duration(longest)*time.Microsecond)
	}}, chapter{"split", func(t *testing.T) {
		if state, s := c.side(t, "b1", "db", beta); state != "GROUP_STATE_LINKED" || !s.InSync || !s.MayFailOver {
			t.Errorf("before the failure: %s %+v", state, s)
		}
		// The replica of one volume is lost; that of the other one is reached all the time.
		at := time.Now()
		if err := c.Node(vs[0].away).Kill(); err != nil {
			t.Fatal(err)
		}
		until(t, "the group is split from beta, with an image there", 20*time.Second, func() (bool, error) {
			state, s := c.side(t, vs[1].away, "db", beta)
			if s.Split && !s.Consistent && s.Reason == "" {
				return false, nil
			}
			return state == "GROUP_STATE_SPLIT" && s.Consistent && !s.InSync, errors.New(s.Reason)
		})
		t.Logf("split %v after the kill, writes paused for %v", time.Since(at), w.pause(t, at))
		if err := c.Kill(alpha); err != nil {
			t.Fatal(err)
		}
		confirmed := len(w.acks(t))
		has := c.tags(t, vs[1].away, vs[0].name, vs[0].away)
		for tag := range c.tags(t, vs[1].away, vs[1].name, vs[1].away) {
			has[tag] = true
		}
		for tag := range len(has) {
			if !has[tag] {
				t.Fatalf("of %d tags on the far side %d is missing: that is no image of one moment", len(has), tag)
			}
		}
		t.Logf("the far side has the first %d of %d confirmed writes", len(has), confirmed)
	}})
}

// prefix returns how many writes of the chain have been made when each volume has had so many, -1 if the chain never is there.
func (c *chain) prefix(t *testing.T, writes [2]int) int {
	t.Helper()
	var sums [2]int
	for n := range writes[0] + writes[1] {
		sums[chainVolume(c.seed, n)]++
	}
	if sums != writes {
		return -1
	}
	return writes[0] + writes[1]
}

// chainVolume is that of testdata/chain.py for two volumes.
func chainVolume(seed int64, tag int) int {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(seed))
	binary.LittleEndian.PutUint64(b[8:], uint64(tag))
	return int(sha3.SumSHAKE128(b[:], 1)[0] % 2)
}

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// members are the ids of the kvdb's members by node, as a node knows them, and which leads. An error says that the node
// does not answer, yet.
func (c *cluster) members(t *testing.T, ask string) (ids map[string]string, leader string, err error) {
	t.Helper()
	var s struct {
		Kvdb struct {
			Leader  string `json:"leader"`
			Members []struct {
				ID   string `json:"id"`
				Name string `json:"name"`
			} `json:"members"`
		} `json:"kvdb"`
	}
	out, err := c.Ctl(t.Context(), c.Node(ask), "kvdb", "members", "-o", "json")
	if err != nil {
		return nil, "", err
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("kvdb members printed %q: %v", out, err)
	}
	ids = map[string]string{}
	for _, m := range s.Kvdb.Members {
		ids[m.Name] = m.ID
	}
	return ids, s.Kvdb.Leader, nil
}

// TestMemberLosesItsDisk replaces a member of the kvdb, each in turn, through tandemctl alone. The founder is among them.
func TestMemberLosesItsDisk(t *testing.T) {
	c := own(t, func(s *lab.Spec) { s.KVDB = "raft" })
	all := []string{"a3", "b3", "w1"}
	if ids, leader, err := c.members(t, "a1"); len(ids) != 3 || !slices.Contains(all, leader) { // a1 is none itself
		t.Fatalf("a node that is no member shows %v, leader %q, %v", ids, leader, err)
	}
	c.refused(t, "a1", 4, []string{"a1"}, "kvdb", "remove", "w1", "--yes")
	c.refused(t, "a3", 3, []string{"nobody"}, "kvdb", "remove", "nobody", "--yes")
	for i, lost := range all {
		ask, other := all[(i+1)%3], all[(i+2)%3]
		old, _, err := c.members(t, ask)
		if err != nil {
			t.Fatal(err)
		}
		n := c.Node(lost)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(n.Dir, "data", "kvdb")); err != nil {
			t.Fatal(err)
		}
		m := c.mark(t, lost)
		if err := c.StartNode(n); err == nil {
			until(t, lost+" refuses to start without its data", 20*time.Second, func() (bool, error) { return !n.Running(), nil })
		}
		if es := m.since(t, "tandemd ready"); len(es) > 0 {
			t.Fatalf("%s started: %s", lost, es[0].raw)
		}
		c.refused(t, ask, 4, []string{lost}, "kvdb", "remove", other, "--yes")
		c.ctl(t, ask, "kvdb", "remove", lost, "--yes", "--timeout", "20s")
		if err := c.StartNode(n); err != nil {
			t.Fatal(err)
		}
		until(t, lost+" is a member again", 30*time.Second, func() (bool, error) {
			ids, _, err := c.members(t, ask)
			if err != nil {
				return false, err
			}
			if ids[lost] == "" || ids[lost] == old[lost] {
				return false, fmt.Errorf("members %v, were %v", ids, old)
			}
			// It votes when it has learnt so itself.
			own, leader, err := c.members(t, lost)
			if err != nil {
				return false, err
			}
			return own[lost] == ids[lost] && leader != "", fmt.Errorf("it knows of %v, leader %q", own, leader)
		})
		// It counts: the others are not a majority without it.
		if err := c.Node(other).Kill(); err != nil {
			t.Fatal(err)
		}
		c.ctl(t, "b1", "volume", "create", "with-"+lost, "--size", "4Mi", "--replicas", "2", "--timeout", "40s")
		if err := c.StartNode(c.Node(other)); err != nil {
			t.Fatal(err)
		}
		until(t, other+" answers", 30*time.Second, func() (bool, error) {
			_, err := c.Ctl(t.Context(), c.Node(other), "--timeout", "5s", "status")
			return err == nil, err
		})
	}
}

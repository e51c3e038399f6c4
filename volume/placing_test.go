package volume

import (
	"slices"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// nodesOf are where the replicas of a volume lie, in order.
func nodesOf(e *Entry) string {
	var ns []string
	for _, p := range e.Placed {
		ns = append(ns, string(p.Node))
	}
	slices.Sort(ns)
	return strings.Join(ns, " ")
}

// begin asks for a volume whose replicas nobody makes.
func (w *world) begin(r Request) (*Entry, error) {
	w.t.Helper()
	id, c := replication.VolumeID(replication.NewUUID()), w.catalogue(w.store)
	for {
		s, err := c.create(w.t.Context(), id, r.normalise())
		if err != nil {
			return nil, err
		}
		if s != nil {
			return w.get(s.ID), nil
		}
	}
}

// lie wants it to lie on these nodes.
func (w *world) lie(r Request, nodes string) *Entry {
	w.t.Helper()
	e, err := w.begin(r)
	if err != nil {
		w.t.Fatal(err)
	}
	if nodesOf(e) != nodes {
		w.t.Errorf("%s lies on %s, want %s", r.Name, nodesOf(e), nodes)
	}
	return e
}

// TestNearAndApart places volumes by the labels of others: of those that are there, not of one that is being deleted.
func TestNearAndApart(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.spare("n-a2", "a")
	w.spare("n-b2", "b")
	c := w.catalogue(w.store)
	db := Request{Name: "db", Size: gib, Replicas: 2, Labels: map[string]string{"app": "db"}, Placing: Placing{Apart: "app=db"}}
	first := w.lie(db, "n-a n-b")
	near := w.lie(Request{Name: "cache", Size: gib, Replicas: 2, Placing: Placing{Near: "app = db"}}, "n-a n-b")
	if near.Placing.Near != "app=db" {
		t.Errorf("the selector is kept as %q", near.Placing.Near)
	}
	db.Name = "db2"
	w.lie(db, "n-a2 n-b2")
	db.Name = "db3"
	_, err := w.begin(db)
	wantErr(t, err, ErrTooFewNodes)
	if !strings.Contains(err.Error(), "node n-a has a replica of volume db, to be apart from (app=db)") {
		t.Error(err)
	}
	if _, err := c.toDeleting(t.Context(), first.ID, "test", nil); err != nil {
		t.Fatal(err)
	}
	w.lie(db, "n-a n-b")
	_, err = w.begin(Request{Name: "far", Size: gib, Placing: Placing{Near: "app=web"}})
	wantErr(t, err, ErrTooFewNodes)
}

// TestPlacingIsOfTheRequest: the same volume is one of the same places, however the selector is written.
func TestPlacingIsOfTheRequest(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.catalogue(w.store)
	r := Request{Name: "v", Size: gib, Replicas: 1, Placing: Placing{Nodes: "!gone,rack notin (r2,r1)"}}
	e := w.create(r)
	r.Placing.Nodes = "rack notin (r1, r2), !gone"
	if again, err := c.Create(t.Context(), r); err != nil || again.ID != e.ID {
		t.Errorf("%v, %v", again, err)
	}
	for name, change := range map[string]func(*Request){
		"nodes": func(r *Request) { r.Placing.Nodes = "!gone" }, "class": func(r *Request) { r.Placing.Class = "x" }, "thick": func(r *Request) { r.Thick = true },
	} {
		other := r
		change(&other)
		if _, err := c.Create(t.Context(), other); err == nil || !strings.Contains(err.Error(), ErrVolumeExists.Error()) {
			t.Errorf("with another %s: %v", name, err)
		}
	}
	for name, p := range map[string]Placing{
		"nodes": {Nodes: "a==b==c"}, "near": {Near: "=x"}, "apart": {Apart: strings.Repeat("x", MaxSelector+1)}, "class": {Class: strings.Repeat("x", MaxLabel+1)}, "spread": {Spread: strings.Repeat("x", MaxLabel+1)},
	} {
		_, err := c.Create(t.Context(), Request{Name: "bad", Size: gib, Placing: p})
		if wantErr(t, err, ErrInvalid); t.Failed() {
			t.Fatal(name)
		}
	}
	_, err := c.Create(t.Context(), Request{Name: "bad", Size: gib, Thick: true, From: &Source{}})
	wantErr(t, err, ErrInvalid)
}

// TestReplaceByTheRules: who takes the place of a replica is chosen by the same rules, with the replicas that stay.
func TestReplaceByTheRules(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.spare("n-b2", "b")
	w.spare("n-b3", "b")
	for i, rack := range []string{"1", "2", "1", "3"} {
		w.view.Nodes[i].Labels = map[string]string{"rack": rack}
	}
	e := w.create(Request{Name: "v", Size: gib, Replicas: 2, Placing: Placing{Spread: "rack"}})
	if nodesOf(e) != "n-a n-b" {
		t.Fatalf("it lies on %s", nodesOf(e))
	}
	w.fault(e.ID, "b")
	c := w.catalogue(w.store)
	err := c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b", Node: "n-b2"})
	wantErr(t, err, ErrNoRoom)
	if !strings.Contains(err.Error(), "node n-b2 has the same label rack=1 as one with another replica") {
		t.Error(err)
	}
	if err := c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b"}); err != nil {
		t.Fatal(err)
	}
	if got := w.get(e.ID).Replacing.New.Node; got != "n-b3" {
		t.Errorf("it goes to %s", got)
	}
}

// TestThickIsMadeThick: those who make a replica are told so.
func TestThickIsMadeThick(t *testing.T) {
	w := newWorld(t, "a", "b")
	for _, thick := range []bool{false, true} {
		e := w.create(Request{Name: map[bool]string{false: "thin", true: "thick"}[thick], Size: gib, Replicas: 2, Thick: thick})
		for _, p := range e.Placed {
			if got := w.disks[string(p.Node)].thick[LocalReplica{e.ID, p.Replica, p.Pool}]; got != thick {
				t.Errorf("one that is to be thick, %v, is made so: %v", thick, got)
			}
		}
	}
}

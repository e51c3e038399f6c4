package nodeloss

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"
)

const grace = 15 * time.Second

// world has node n1 with a pod and its volume, of which n2 has the other replica.
func world() *World {
	return &World{
		Online: map[string]bool{"t1": false, "t2": true},
		Nodes: []Node{
			{Name: "n1", Tandem: "t1", Silent: grace, InUse: []string{"v"}},
			{Name: "n2", Tandem: "t2", Silent: 3 * time.Second},
		},
		Pods:    []Pod{{Name: "p", Node: "n1", Handles: []string{"v"}}, {Name: "other", Node: "n2", Handles: []string{"w"}}},
		Volumes: map[string]Volume{"v": {Attached: "t1", InSync: []string{"t1", "t2"}}, "w": {Attached: "t2", InSync: []string{"t2"}}},
	}
}

func TestDecide(t *testing.T) {
	mark, release := Action{Kind: Mark, Node: "n1"}, Action{Kind: Release, Node: "n1", Handles: []string{}}
	del := Action{Kind: Delete, Node: "n1", Pod: world().Pods[0]}
	all := []Action{mark, del, release}
	for _, tc := range []struct {
		name   string
		change func(w *World)
		want   []Action
	}{
		{"lost", func(*World) {}, all},
		{"its kubelet was heard of", func(w *World) { w.Nodes[0].Silent = grace - 1 }, nil},
		{"its tandemd answers", func(w *World) { w.Online["t1"] = true }, nil},
		{"opted out", func(w *World) { w.Nodes[0].Ignored = true }, nil},
		{"marked already", func(w *World) { w.Nodes[0].Marked = true }, all[1:]},
		{"all done", func(w *World) { w.Nodes[0].Marked, w.Nodes[0].InUse, w.Pods = true, nil, nil }, nil},
		{"without pods or volumes", func(w *World) { w.Nodes[0].InUse, w.Pods = nil, nil }, nil},
		{"pods gone, volumes still in use", func(w *World) { w.Nodes[0].Marked, w.Pods = true, nil }, all[2:]},
		{"attached nowhere by now", func(w *World) { w.Volumes["v"] = Volume{InSync: []string{"t1", "t2"}} }, all},
		{"attached elsewhere", func(w *World) { w.Volumes["v"] = Volume{Attached: "t2", InSync: []string{"t2"}} }, nil},
		{"the only copy", func(w *World) { w.Volumes["v"] = Volume{Attached: "t1", InSync: []string{"t1"}} }, nil},
		{"the other copy is lost too", func(w *World) { w.Online["t2"] = false }, nil},
		{"the other copy is on a node that is not known", func(w *World) { w.Volumes["v"] = Volume{Attached: "t1", InSync: []string{"t1", "t3"}} }, nil},
		{"the other copy is in another Kubernetes", func(w *World) {
			w.Online["t3"], w.Volumes["v"] = true, Volume{Attached: "t1", InSync: []string{"t1", "t3"}}
		}, all},
		{"a volume that nobody knows", func(w *World) { w.Volumes = nil }, nil},
		{"the pod opted out", func(w *World) { w.Pods[0].Ignored = true }, nil},
		{"one of its volumes cannot move", func(w *World) {
			w.Pods[0].Handles, w.Nodes[0].InUse = []string{"v", "x"}, []string{"v", "x"}
			w.Volumes["x"] = Volume{Attached: "t1", InSync: []string{"t1"}}
		}, nil},
		{"another driver's volumes and those that stay are left alone", func(w *World) {
			w.Pods = append(w.Pods, Pod{Name: "q", Node: "n1", Handles: []string{"x"}})
			w.Nodes[0].InUse = []string{"v", "x"}
			w.Volumes["x"] = Volume{Attached: "t1", InSync: []string{"t1"}}
		}, []Action{mark, del, {Kind: Release, Node: "n1", Handles: []string{"x"}}}},
		{"back", func(w *World) { w.Online["t1"], w.Nodes[0] = true, Node{Name: "n1", Tandem: "t1", Marked: true} }, []Action{{Kind: Unmark, Node: "n1"}}},
		{"opted out after it was marked", func(w *World) { w.Nodes[0].Marked, w.Nodes[0].Ignored = true, true }, []Action{{Kind: Unmark, Node: "n1"}}},
		{"marked, without the driver", func(w *World) { w.Nodes[0].Marked, w.Nodes[0].Tandem = true, "" }, nil},
		{"back, without its kubelet", func(w *World) { w.Nodes[0].Marked, w.Online["t1"] = true, true }, nil},
		{"back, without its tandemd", func(w *World) { w.Nodes[0].Marked, w.Nodes[0].Silent = true, 0 }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := world()
			tc.change(w)
			if got := Decide(w, grace); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %v\nwant %v", got, tc.want)
			}
		})
	}
}

// Whatever the world is, no pod of a node that is heard of is touched, and none of which a volume has no copy elsewhere.
func TestDecideNever(t *testing.T) {
	for i := range 1 << 12 {
		bit := func(n int) bool { return i>>n&1 == 1 }
		silent := func(n int) time.Duration { return map[bool]time.Duration{true: grace, false: 0}[bit(n)] }
		w := &World{
			Nodes: []Node{
				{Name: "n1", Tandem: "t1", Silent: silent(1), Ignored: bit(2), Marked: bit(3), InUse: []string{"v"}},
				{Name: "n2", Tandem: "t2", Silent: silent(5)},
			},
			Online:  map[string]bool{"t1": bit(0), "t2": bit(4)},
			Pods:    []Pod{{Name: "p", Node: "n1", Handles: []string{"v"}, Ignored: bit(6)}},
			Volumes: map[string]Volume{},
		}
		if bit(7) {
			v := Volume{Attached: map[bool]string{true: "t2"}[bit(8)], InSync: []string{"t1"}}
			if bit(9) {
				v.InSync = []string{"t2"}
			}
			if bit(10) {
				v.InSync = append(v.InSync, "t2")
			}
			if bit(11) {
				v.Attached = "t1"
			}
			w.Volumes["v"] = v
		}
		v := w.Volumes["v"]
		may := !bit(0) && bit(1) && !bit(2) && bit(4) && slices.Contains(v.InSync, "t2") && v.Attached != "t2"
		for _, a := range Decide(w, grace) {
			if a.Node != "n1" || a.Kind != Unmark && !may || a.Kind == Delete && bit(6) {
				t.Fatal(fmt.Sprintf("%+v", w), a)
			}
		}
	}
}

func TestSilences(t *testing.T) {
	var s silences
	start := time.Unix(1000, 0)
	at := func(sec int) time.Time { return start.Add(time.Duration(sec) * time.Second) }
	skewed := time.Unix(5, 0) // clocks differ
	for _, tc := range []struct {
		now     int
		renewed time.Time
		want    time.Duration
	}{
		{0, skewed, 0}, {5, skewed, 5 * time.Second}, {10, skewed.Add(10 * time.Second), 0}, {12, skewed.Add(10 * time.Second), 2 * time.Second},
		{17, skewed.Add(10 * time.Second), 7 * time.Second}, {23, skewed.Add(10 * time.Second), 0}, // nothing was seen for 6 s
	} {
		if got := s.see(at(tc.now), map[string]time.Time{"n": tc.renewed}); got["n"] != tc.want {
			t.Errorf("after %d s: silent for %v, want %v", tc.now, got["n"], tc.want)
		}
	}
	if s.see(at(24), nil); len(s.seen) != 0 {
		t.Error("a node that is gone is remembered")
	}
}

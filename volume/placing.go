package volume

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Placing narrows down where the replicas of a volume may lie, after its domains. Selectors are those of Kubernetes: requirements that all have to hold, separated by
// commas, as in "disk=nvme,rack notin (r7,r8)". It counts when a replica is placed, at the creation or in the place of another one, and not afterwards. The
// zero value narrows nothing down.
type Placing struct {
	Nodes  string `json:"nodes,omitempty"`  // selector: nodes with these labels only
	Class  string `json:"class,omitempty"`  // pools of this class only
	Spread string `json:"spread,omitempty"` // key of a label of nodes: every replica lies where it has another value, and none where it is not set
	Near   string `json:"near,omitempty"`   // selector: nodes only that have a replica of a volume with these labels
	Apart  string `json:"apart,omitempty"`  // selector: nodes only that have no replica of a volume with these labels
}

// normalise gives selectors that say the same the same text. One that cannot be read stays, for validate.
func (p Placing) normalise() Placing {
	for _, s := range []*string{&p.Nodes, &p.Near, &p.Apart} {
		if sel, err := labels.Parse(*s); err == nil {
			*s = sel.String()
		}
	}
	return p
}

func (p Placing) validate(bad func(format string, a ...any)) {
	for _, s := range []struct{ what, text string }{{"nodes to place on", p.Nodes}, {"volumes to be near", p.Near}, {"volumes to be apart from", p.Apart}} {
		if len(s.text) > MaxSelector {
			bad("the selector of %s has %d characters, at most %d are allowed", s.what, len(s.text), MaxSelector)
		} else if _, err := labels.Parse(s.text); err != nil {
			bad("the selector of %s, %q: %v; write it as in `disk=nvme,rack!=r7`", s.what, s.text, err)
		}
	}
	if len(p.Class) > MaxLabel {
		bad("the class of pools has %d characters, at most %d are allowed", len(p.Class), MaxLabel)
	}
	if len(p.Spread) > MaxLabel {
		bad("the label to spread by has %d characters, at most %d are allowed", len(p.Spread), MaxLabel)
	}
}

// rules are a Placing, read, with what the volumes that are there make of it.
type rules struct {
	Placing
	nodes       labels.Selector
	near, apart map[replication.NodeID]string // nodes with a replica of a volume that Near, Apart selects: its name
}

// rules reads p for the volume of that id. ErrInvalid: p cannot be read.
func (c *Catalogue) rules(ctx context.Context, p Placing, id replication.VolumeID) (*rules, error) {
	var es map[replication.VolumeID]*Entry
	if p.Near != "" || p.Apart != "" {
		kvs, _, err := c.store.List(ctx, c.keys.volumes())
		if err != nil {
			return nil, fmt.Errorf("read volumes: %w", err)
		}
		es, _ = c.entries(kvs)
		delete(es, id)
	}
	return p.rules(es)
}

// rules reads p beside the other volumes, es.
func (p Placing) rules(es map[replication.VolumeID]*Entry) (*rules, error) {
	var near, apart labels.Selector
	r := &rules{Placing: p}
	for _, s := range []struct {
		text string
		to   *labels.Selector
	}{{p.Nodes, &r.nodes}, {p.Near, &near}, {p.Apart, &apart}} {
		var err error
		if *s.to, err = labels.Parse(s.text); err != nil {
			return nil, fmt.Errorf("%w: selector %q: %w", ErrInvalid, s.text, err)
		}
	}
	hosts := func(sel labels.Selector) map[replication.NodeID]string {
		on := map[replication.NodeID]string{}
		for _, e := range es {
			if sel.Empty() || e.State == Deleting || !sel.Matches(labels.Set(e.Labels)) {
				continue
			}
			placed := e.Placed
			if e.Replacing != nil {
				placed = append(slices.Clone(placed), e.Replacing.New)
			}
			for _, q := range placed {
				on[q.Node] = max(on[q.Node], e.Name) // the same one whatever the order
			}
		}
		return on
	}
	r.near, r.apart = hosts(near), hosts(apart)
	return r, nil
}

// refuses says why the rules let no replica lie on n, "" if they do.
func (r *rules) refuses(n *clusterdomain.Node) string {
	id := replication.NodeID(n.Name)
	spread, labelled := n.Labels[r.Spread]
	switch {
	case !r.nodes.Matches(labels.Set(n.Labels)):
		return fmt.Sprintf("node %s has labels %q, asked for are nodes with %s", n.Name, labels.FormatLabels(n.Labels), r.Nodes)
	case r.Spread != "" && (!labelled || spread == ""):
		return fmt.Sprintf("node %s has no label %s to spread by", n.Name, r.Spread)
	case r.Near != "" && r.near[id] == "":
		return fmt.Sprintf("node %s has no replica of a volume with %s, to be near to", n.Name, r.Near)
	case r.apart[id] != "":
		return fmt.Sprintf("node %s has a replica of volume %s, to be apart from (%s)", n.Name, r.apart[id], r.Apart)
	case r.Class != "" && !slices.ContainsFunc(n.Pools, func(p clusterdomain.Pool) bool { return p.Class == r.Class }):
		return fmt.Sprintf("node %s has no pool of class %s", n.Name, r.Class)
	}
	return ""
}

func parsePlacing(p *volumepb.Placing) Placing {
	return Placing{Nodes: p.GetNodes(), Class: p.GetClass(), Spread: p.GetSpread(), Near: p.GetNear(), Apart: p.GetApart()}
}

// placingPB is nil if p narrows nothing down.
func placingPB(p Placing) *volumepb.Placing {
	if p == (Placing{}) {
		return nil
	}
	return &volumepb.Placing{Nodes: p.Nodes, Class: p.Class, Spread: p.Spread, Near: p.Near, Apart: p.Apart}
}

package volume

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
)

// candidate is a pool that a replica could go to.
type candidate struct {
	node, domain, pool string
	free               int64 // what nobody uses or was promised
}

// place chooses the pools of a new volume's replicas: at most one on a node, one per
// domain before a second in any, and where there is most room. The same view and request give the same places.
// The ids of the replicas are left empty.
func place(v *clusterdomain.View, r Request) ([]Placement, error) {
	for _, name := range r.Domains {
		if _, ok := v.Domain(name); !ok {
			return nil, fmt.Errorf("%w: %q", clusterdomain.ErrDomainNotFound, name)
		}
	}
	cands, why := candidates(v, r)
	want := r.Replicas
	if want == 0 {
		domains := map[string]bool{}
		for _, c := range cands {
			domains[c.domain] = true
		}
		want = min(max(len(domains), 1), MaxReplicas)
	}
	placed := choose(cands, want)
	if len(placed) < want {
		return nil, why.error(want, len(placed), r.Size)
	}
	return placed, nil
}

// choose picks up to want pools of cands.
func choose(cands []candidate, want int) []Placement {
	slices.SortFunc(cands, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.free, a.free), cmp.Compare(a.node, b.node), cmp.Compare(a.pool, b.pool))
	})
	inDomain, onNode := map[string]int{}, map[string]bool{}
	var placed []Placement
	for len(placed) < want {
		best := -1
		for i, c := range cands {
			if !onNode[c.node] && (best < 0 || inDomain[c.domain] < inDomain[cands[best].domain]) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		c := cands[best]
		inDomain[c.domain]++
		onNode[c.node] = true
		placed = append(placed, Placement{
			Node: replication.NodeID(c.node), Domain: replication.DomainID(c.domain), Pool: c.pool,
		})
	}
	return placed
}

// reasons say why nodes and pools were passed over.
type reasons struct {
	text     []string
	tooSmall int // nodes whose pools are all smaller than the volume
	full     int // nodes whose pools are above the watermark
	usable   int // nodes with a pool that would do
	largest  int64
}

func candidates(v *clusterdomain.View, r Request) ([]candidate, reasons) {
	var cands []candidate
	var why reasons
	for _, n := range v.Nodes {
		if n.Witness || len(r.Domains) > 0 && !slices.Contains(r.Domains, n.Domain) {
			continue
		}
		switch s := v.State(n.Domain); {
		case !s.MayPlace():
			why.add("node %s: its domain %s is %s", n.Name, n.Domain, s)
			continue
		case !n.Online:
			why.add("node %s is offline", n.Name)
			continue
		case len(n.Pools) == 0:
			why.add("node %s has no pool", n.Name)
			continue
		}
		ok, small := false, true
		for _, p := range n.Pools {
			why.largest = max(why.largest, p.Total)
			small = small && p.Total < r.Size
			switch {
			case p.Total < r.Size:
				why.add("pool %s on node %s is %s in all", p.Path, n.Name, humanize.IBytes(uint64(max(p.Total, 0))))
			case p.UsedPercent() >= clusterdomain.PoolFullPercent:
				why.add("pool %s on node %s is %d %% full (new replicas below %d %%)", p.Path, n.Name, p.UsedPercent(), clusterdomain.PoolFullPercent)
			default:
				ok = true
				cands = append(cands, candidate{n.Name, n.Domain, p.UUID, p.Total - max(p.Used, p.Provisioned)})
			}
		}
		switch {
		case ok:
			why.usable++
		case small:
			why.tooSmall++
		default:
			why.full++
		}
	}
	return cands, why
}

func (w *reasons) add(format string, a ...any) { w.text = append(w.text, fmt.Sprintf(format, a...)) }

func (w *reasons) error(want, got int, size int64) error {
	detail := ""
	if len(w.text) > 0 {
		detail = " (" + strings.Join(w.text, "; ") + ")"
	}
	switch {
	case w.usable+w.full+w.tooSmall < want:
		return fmt.Errorf("%w: %d replicas wanted on as many nodes, %d can take one%s", ErrTooFewNodes, want, got, detail)
	case w.usable+w.full < want:
		return fmt.Errorf("%w: %s wanted, the largest pool has %s%s", ErrTooLarge, humanize.IBytes(uint64(size)), humanize.IBytes(uint64(w.largest)), detail)
	default:
		return fmt.Errorf("%w: %d replicas wanted, there is room for %d%s", ErrNoRoom, want, got, detail)
	}
}

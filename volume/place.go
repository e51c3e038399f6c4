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
	near               bool   // it comes before others
	free               int64  // what nobody uses or was promised
	spread             string // of two with the same one is taken; "": any number
}

// place chooses the pools of a new volume's replicas: at most one on a node, one per
// domain before a second in any, one where it is wished for, and where there is most room. The same view and request give the same places.
// The ids of the replicas are left empty.
func place(v *clusterdomain.View, r Request, by *rules) ([]Placement, error) {
	for _, name := range r.Domains {
		if _, ok := v.Domain(name); !ok {
			return nil, fmt.Errorf("%w: %q", clusterdomain.ErrDomainNotFound, name)
		}
	}
	cands, why := candidates(v, r, by)
	want := r.Replicas
	if want == 0 {
		want = min(max(domainsOf(cands), 1), MaxReplicas)
	}
	placed := choose(cands, want)
	if len(placed) < want {
		if by.Spread != "" {
			why.add("no two replicas may lie where the label %s is the same", by.Spread)
			values := map[string]bool{}
			for _, c := range cands {
				values[c.spread] = true
			}
			why.usable = len(values) // so many nodes can have one
		}
		return nil, why.error(want, len(placed), r.Size)
	}
	return placed, nil
}

// choose picks want pools of cands, or as many as can be: over as many domains as can be, and each time the best that is left, in the domain with fewest so far and
// there where it is wished for, or most room is. Where replicas are spread by a label the best may leave too few for the others, or none in another domain: then the next
// one is tried.
func choose(cands []candidate, want int) []Placement {
	slices.SortFunc(cands, func(a, b candidate) int {
		if a.near != b.near {
			return map[bool]int{true: -1, false: 1}[a.near]
		}
		return cmp.Or(cmp.Compare(b.free, a.free), cmp.Compare(a.node, b.node), cmp.Compare(a.pool, b.pool))
	})
	var most []candidate
	var more func(chosen []candidate, domains int) bool
	more = func(chosen []candidate, domains int) bool {
		if len(chosen) > len(most) {
			most = chosen
		}
		if len(chosen) == want {
			most = chosen
			return domainsOf(chosen) >= domains
		}
		for _, c := range ordered(cands, chosen) {
			if more(append(slices.Clone(chosen), c), domains) {
				return true
			}
			if c.spread == "" {
				return false // whichever is taken, as many are left
			}
		}
		return false
	}
	found := false
	for domains := min(want, domainsOf(cands)); domains > 0 && !found; domains-- {
		found = more(nil, domains)
	}
	var placed []Placement
	for _, c := range most {
		placed = append(placed, Placement{Node: replication.NodeID(c.node), Domain: replication.DomainID(c.domain), Pool: c.pool})
	}
	return placed
}

// domainsOf is how many domains there are among cs.
func domainsOf(cs []candidate) int {
	in := map[string]bool{}
	for _, c := range cs {
		in[c.domain] = true
	}
	return len(in)
}

// ordered are the candidates that may be chosen after others, the best first.
func ordered(cands, chosen []candidate) []candidate {
	inDomain := map[string]int{}
	for _, c := range chosen {
		inDomain[c.domain]++
	}
	left := slices.DeleteFunc(slices.Clone(cands), func(c candidate) bool {
		return slices.ContainsFunc(chosen, func(d candidate) bool { return c.node == d.node || c.spread != "" && c.spread == d.spread })
	})
	slices.SortStableFunc(left, func(a, b candidate) int { return cmp.Compare(inDomain[a.domain], inDomain[b.domain]) })
	return left
}

// reasons say why nodes and pools were passed over.
type reasons struct {
	text     []string
	tooSmall int // nodes whose pools are all smaller than the volume
	full     int // nodes whose pools are above the watermark
	usable   int // nodes with a pool that would do
	largest  int64
}

func candidates(v *clusterdomain.View, r Request, by *rules) ([]candidate, reasons) {
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
		if text := by.refuses(&n); text != "" {
			why.add("%s", text)
			continue
		}
		ok, small := false, true
		for _, p := range n.Pools {
			if by.Class != "" && p.Class != by.Class {
				continue
			}
			why.largest = max(why.largest, p.Total)
			small = small && p.Total < r.Size
			switch {
			case p.Total < r.Size:
				why.add("pool %s on node %s is %s in all", p.Path, n.Name, humanize.IBytes(uint64(max(p.Total, 0))))
			case p.UsedPercent() >= clusterdomain.PoolFullPercent:
				why.add("pool %s on node %s is %d %% full (new replicas below %d %%)", p.Path, n.Name, p.UsedPercent(), clusterdomain.PoolFullPercent)
			case r.Thick && p.Total-p.Used < r.Size:
				why.add("pool %s on node %s has %s left, and a thick replica takes all its space at once", p.Path, n.Name, humanize.IBytes(uint64(max(p.Total-p.Used, 0))))
			default:
				ok = true
				cands = append(cands, candidate{n.Name, n.Domain, p.UUID, n.Name == string(r.NearNode), p.Total - max(p.Used, p.Provisioned), n.Labels[by.Spread]})
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

// detail is what was passed over, in brackets.
func (w *reasons) detail() string {
	if len(w.text) == 0 {
		return ""
	}
	return " (" + strings.Join(w.text, "; ") + ")"
}

func (w *reasons) error(want, got int, size int64) error {
	detail := w.detail()
	switch {
	case w.usable+w.full+w.tooSmall < want:
		return fmt.Errorf("%w: %d replicas wanted on as many nodes, %d can take one%s", ErrTooFewNodes, want, got, detail)
	case w.usable+w.full < want:
		return fmt.Errorf("%w: %s wanted, the largest pool has %s%s", ErrTooLarge, humanize.IBytes(uint64(size)), humanize.IBytes(uint64(w.largest)), detail)
	default:
		return fmt.Errorf("%w: %d replicas wanted, there is room for %d%s", ErrNoRoom, want, got, detail)
	}
}

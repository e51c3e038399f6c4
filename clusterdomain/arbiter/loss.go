package arbiter

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fate is what becomes of a volume.
type Fate string

// Fates, of the loss of a domain.
const (
	Unaffected Fate = "unaffected" // nothing of it is there
	GoesOn     Fate = "goes-on"    // where it is attached, or it can be attached as before; with fewer replicas
	FailsOver  Fate = "fails-over" // it is attached there, and can be taken over
	Stalls     Fate = "stalls"     // it stays attached, and its writes wait for a replica there
	Stops      Fate = "stops"      // it is attached there, or could be, and nobody can take it over
)

// Loss is what the loss of a domain would do to a volume.
type Loss struct {
	Volume Volume
	Fate   Fate
	Nodes  []string // with a usable in-sync replica afterwards, by name; of FailsOver where it can be taken over with a replica at hand
	Why    string
}

// Bad reports whether the volume could not be used afterwards.
func (l Loss) Bad() bool { return l.Fate == Stalls || l.Fate == Stops }

// Text says it in words.
func (l Loss) Text() string {
	switch l.Fate {
	case Unaffected:
		return "unaffected"
	case GoesOn:
		return "would go on: " + l.Why
	case FailsOver:
		return "would fail over to node " + strings.Join(l.Nodes, " or ")
	case Stalls:
		return "would stall: " + l.Why
	case Stops:
		return "would stop: " + l.Why
	default:
		return string(l.Fate)
	}
}

// Lose tells what the loss of a domain at this moment would do to every volume, by name.
func Lose(v View, domain string) []Loss {
	losses := make([]Loss, 0, len(v.Volumes))
	for _, vol := range v.Volumes {
		losses = append(losses, lose(v, domain, vol))
	}
	slices.SortStableFunc(losses, func(a, b Loss) int {
		return cmp.Or(cmp.Compare(a.Volume.Name, b.Volume.Name), cmp.Compare(a.Volume.ID, b.Volume.ID))
	})
	return losses
}

func lose(v View, domain string, vol Volume) Loss {
	l := Loss{Volume: vol}
	here, attachedHere := false, vol.Coordinator.Domain == domain && vol.Attached()
	var attach []string // that have a replica and may be attached on
	for _, r := range vol.Replicas {
		switch {
		case r.Domain == domain:
			here = true
		case r.InSync && v.Domains[r.Domain].counts():
			l.Nodes = append(l.Nodes, r.Node)
			if v.Domains[r.Domain].MayAttach() {
				attach = append(attach, r.Node)
			}
		}
	}
	slices.Sort(l.Nodes)
	slices.Sort(attach)
	switch {
	case vol.unknown() != "":
		l.Fate, l.Nodes, l.Why = Stops, nil, Blocked{vol, vol.unknown()}.Text()
	case !here && !attachedHere:
		l.Fate = Unaffected
	case lastCopy(v, vol, domain):
		l.Fate, l.Why = Stops, fmt.Sprintf("its only in-sync copy is in %s", domain)
	case len(l.Nodes) == 0:
		l.Fate, l.Why = Stops, "no other domain in service has an in-sync copy"
	case attachedHere && len(attach) == 0:
		l.Fate, l.Why = Stops, fmt.Sprintf("the in-sync copy on node %s is in a domain that is not ACTIVE: activate it", strings.Join(l.Nodes, ", "))
	case attachedHere:
		l.Fate, l.Nodes = FailsOver, attach
		if vol.Strict {
			l.Fate, l.Why = Stalls, fmt.Sprintf("it can be taken over on node %s, but with max-protection its writes wait for a replica in %s", strings.Join(attach, " or "), domain)
		}
	case vol.Strict && vol.Attached():
		l.Fate, l.Why = Stalls, fmt.Sprintf("with max-protection its writes wait for a replica in %s", domain)
	case vol.Attached():
		l.Fate, l.Why = GoesOn, fmt.Sprintf("on node %s, with what is on node %s", vol.Coordinator.Node, strings.Join(l.Nodes, ", "))
	default:
		l.Fate, l.Why = GoesOn, fmt.Sprintf("detached, node %s has all of it", strings.Join(l.Nodes, ", "))
	}
	return l
}

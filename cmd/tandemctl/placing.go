package main

import (
	"strings"

	"github.com/spf13/pflag"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// placingFlags say where replicas may lie, and how their space is taken.
type placingFlags struct {
	placing pb.Placing
	thick   bool
}

func (p *placingFlags) register(f *pflag.FlagSet) {
	f.StringVar(&p.placing.Nodes, "nodes", "", "place replicas on nodes with these labels only, a `selector` as in disk=nvme,rack!=r7")
	f.StringVar(&p.placing.Class, "pool-class", "", "place replicas in pools of this `class` only")
	f.StringVar(&p.placing.Spread, "spread", "", "place every replica where this `label` of nodes has another value")
	f.StringVar(&p.placing.Near, "near", "", "place replicas on nodes only that have one of a volume with these labels, a `selector`")
	f.StringVar(&p.placing.Apart, "apart", "", "place replicas on nodes only that have none of a volume with these labels, a `selector`")
	f.BoolVar(&p.thick, "thick", false, "take all space of the volume now, and when it grows")
}

// message is nil if nothing is narrowed down.
func (p *placingFlags) message() *pb.Placing {
	if placingText(&p.placing) == "" {
		return nil
	}
	return &p.placing
}

func spaceText(v *pb.Volume) string {
	if v.GetThick() {
		return "thick"
	}
	return "thin"
}

// placingText is how p was asked for, "" if it narrows nothing down.
func placingText(p *pb.Placing) string {
	var parts []string
	for _, f := range []struct{ name, value string }{
		{"nodes", p.GetNodes()}, {"pools of class", p.GetClass()}, {"spread by", p.GetSpread()}, {"near", p.GetNear()}, {"apart from", p.GetApart()},
	} {
		if f.value != "" {
			parts = append(parts, f.name+" "+f.value)
		}
	}
	return strings.Join(parts, "; ")
}

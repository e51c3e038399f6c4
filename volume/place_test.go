package volume

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
)

// parseView makes a view of lines "node domain[/STATE] [offline] [witness] [label=value] total-GiB[:used-GiB[:provisioned-GiB[:class]]] ...".
func parseView(text string) *clusterdomain.View {
	v := &clusterdomain.View{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		dom, state, ok := strings.Cut(f[1], "/")
		if !ok {
			state = "ACTIVE"
		}
		n := clusterdomain.Node{Name: f[0], Domain: dom, Online: true}
		for _, w := range f[2:] {
			switch w {
			case "offline":
				n.Online = false
			case "witness":
				n.Witness = true
			default:
				if name, value, ok := strings.Cut(w, "="); ok {
					if n.Labels == nil {
						n.Labels = map[string]string{}
					}
					n.Labels[name] = value
					continue
				}
				var total, used, prov int64
				var class string
				fmt.Sscanf(strings.ReplaceAll(w, ":", " "), "%d %d %d %s", &total, &used, &prov, &class)
				n.Pools = append(n.Pools, clusterdomain.Pool{
					UUID: fmt.Sprintf("%s.%d", f[0], len(n.Pools)), Total: total * gib, Used: used * gib, Provisioned: prov * gib, Class: class,
				})
			}
		}
		v.Nodes = append(v.Nodes, n)
		if _, ok := v.Domain(dom); !ok && !n.Witness {
			v.Domains = append(v.Domains, clusterdomain.Domain{Name: dom, State: clusterdomain.State(state)})
			slices.SortFunc(v.Domains, func(a, b clusterdomain.Domain) int { return strings.Compare(a.Name, b.Name) })
		}
	}
	return v
}

func TestPlace(t *testing.T) {
	metro := `
		a1 a 100
		a2 a 200
		b1 b 100:50
		b2 b 100`
	racks := `
		a1 a rack=1 disk=nvme 100
		a2 a rack=2 100
		a3 a rack=3 300
		b1 b rack=1 disk=nvme 100
		b2 b rack=2 300
		b3 b rack=3 100`
	for _, c := range []struct {
		name, view string
		r          Request
		want       string // pools, or what the error says
		err        error
	}{
		{"one per domain, most room", metro, Request{Replicas: 2}, "a2.0 b2.0", nil},
		{"default is one per domain", metro, Request{}, "a2.0 b2.0", nil},
		{"third goes to another node", metro, Request{Replicas: 3}, "a2.0 b2.0 a1.0", nil},
		{"one", metro, Request{Replicas: 1}, "a2.0", nil},
		{"only where asked", metro, Request{Replicas: 2, Domains: []string{"b"}}, "b2.0 b1.0", nil},
		{"promised room counts", "a1 a 100:0:90\na2 a 50", Request{Replicas: 1}, "a2.0", nil},
		{"best pool of a node", "a1 a 100:80 100:10", Request{Replicas: 1}, "a1.1", nil},
		{"never two on a node", "a1 a 100 100", Request{Replicas: 2}, "2 replicas wanted on as many nodes", ErrTooFewNodes},
		{"three domains", "a1 a 100\nb1 b 90\nc1 c 80\nd1 d 70", Request{}, "a1.0 b1.0 c1.0", nil},
		{"standby takes replicas", "a1 a 100\nb1 b/STANDBY 100", Request{}, "a1.0 b1.0", nil},
		{"fenced does not", "a1 a 100\nb1 b/FENCED 100", Request{Replicas: 2}, "its domain b is FENCED", ErrTooFewNodes},
		{"draining does not", "a1 a 100\nb1 b/DRAINING 100", Request{}, "a1.0", nil},
		{"rejoining does not", "a1 a 100\nb1 b/REJOINING 100", Request{}, "a1.0", nil},
		{"offline", "a1 a 100\nb1 b offline 100", Request{Replicas: 2}, "node b1 is offline", ErrTooFewNodes},
		{"witness", "a1 a 100\nw w witness 100", Request{Replicas: 2}, "1 can take one", ErrTooFewNodes},
		{"no pool", "a1 a 100\nb1 b", Request{Replicas: 2}, "node b1 has no pool", ErrTooFewNodes},
		{"watermark", "a1 a 100\nb1 b 100:85", Request{Replicas: 2}, "85 % full", ErrNoRoom},
		{"below the watermark", "a1 a 100\nb1 b 100:84", Request{Replicas: 2}, "a1.0 b1.0", nil},
		{"too large", "a1 a 100\nb1 b 100", Request{Size: 200 * gib, Replicas: 2}, "largest pool has 100 GiB", ErrTooLarge},
		{"too large for one", "a1 a 300\nb1 b 100", Request{Size: 200 * gib, Replicas: 2}, "100 GiB in all", ErrTooLarge},
		{"nodes by labels", racks, Request{Placing: Placing{Nodes: "disk=nvme"}}, "a1.0 b1.0", nil},
		{"nodes without a label", racks, Request{Placing: Placing{Nodes: "rack!=2,!disk"}}, "a3.0 b3.0", nil},
		{"no node has the labels", racks, Request{Placing: Placing{Nodes: "disk=tape"}}, `node a1 has labels "disk=nvme,rack=1", asked for are nodes with disk=tape`, ErrTooFewNodes},
		{"by class", "a1 a 100:0:0:slow 50:0:0:fast\nb1 b 100 40:0:0:fast\nb2 b 200", Request{Placing: Placing{Class: "fast"}}, "a1.1 b1.1", nil},
		{"no pool of the class", metro, Request{Placing: Placing{Class: "fast"}}, "node a1 has no pool of class fast", ErrTooFewNodes},
		{"too large for the class", "a1 a 100:0:0:slow 50:0:0:fast", Request{Size: 60 * gib, Placing: Placing{Class: "fast"}}, "largest pool has 50 GiB", ErrTooLarge},
		{"spread", racks, Request{Replicas: 3, Placing: Placing{Spread: "rack"}}, "a3.0 b2.0 a1.0", nil},
		{"spread by what few have", racks, Request{Replicas: 3, Placing: Placing{Spread: "disk"}}, "node a2 has no label disk to spread by", ErrTooFewNodes},
		{"domains before most room", "a1 a rack=1 300\na2 a rack=2 200\nb1 b rack=1 100", Request{Replicas: 2, Placing: Placing{Spread: "rack"}}, "a2.0 b1.0", nil},
		{"the best leaves too few", "a1 a rack=1 300\na1x a rack=2 200\nb1 b rack=1 100", Request{Replicas: 3, Placing: Placing{Spread: "rack"}}, "no two replicas may lie where the label rack is the same", ErrTooFewNodes},
		{"thick", "a1 a 100:50:0\nb1 b 100:20", Request{Size: 60 * gib, Replicas: 1, Thick: true}, "b1.0", nil},
		{"no room for a thick one", "a1 a 100:50:0\nb1 b 100:50", Request{Size: 60 * gib, Thick: true, Replicas: 2}, "50 GiB left, and a thick replica", ErrNoRoom},
		{"near", metro, Request{NearNode: "a1"}, "a1.0 b2.0", nil},
		{"near, the other domain", metro, Request{Replicas: 3, NearNode: "b1"}, "b1.0 a2.0 a1.0", nil},
		{"near, the best pool there", "a1 a 100:80 100:10\na2 a 300", Request{Replicas: 1, NearNode: "a1"}, "a1.1", nil},
		{"near a node that cannot have one", "a1 a offline 100\na2 a 100", Request{Replicas: 1, NearNode: "a1"}, "a2.0", nil},
		{"near, against the rules", racks, Request{Replicas: 1, NearNode: "a1", Placing: Placing{Nodes: "!disk"}}, "a3.0", nil},
		{"near, and domains before it", "a1 a rack=1 300\nb1 b rack=1 100\na2 a rack=2 200", Request{Replicas: 2, NearNode: "a1", Placing: Placing{Spread: "rack"}}, "a2.0 b1.0", nil},
		{"near nobody", metro, Request{NearNode: "z"}, "a2.0 b2.0", nil},
		{"nobody", "", Request{}, "0 can take one", ErrTooFewNodes},
		{"unknown domain", metro, Request{Domains: []string{"z"}}, `"z"`, clusterdomain.ErrDomainNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.r.Size == 0 {
				c.r.Size = gib
			}
			by, err := c.r.Placing.rules(nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := place(parseView(c.view), c.r, by)
			if c.err != nil {
				if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error %v, want %v saying %q", err, c.err, c.want)
				}
				return
			}
			var pools []string
			for _, p := range got {
				pools = append(pools, p.Pool)
			}
			if err != nil || strings.Join(pools, " ") != c.want {
				t.Errorf("%v %v, want %s", pools, err, c.want)
			}
		})
	}
}

func TestCheckAttach(t *testing.T) {
	at := func(node, domain string) *replication.Config {
		return &replication.Config{Coord: &replication.Coord{Node: replication.NodeID(node), Domain: replication.DomainID(domain)}}
	}
	inSync := func(domains ...string) *replication.Config {
		cfg := &replication.Config{Members: map[replication.ReplicaID]replication.Member{}}
		for _, d := range domains {
			r := replication.ReplicaID(replication.NewUUID())
			cfg.Members[r] = replication.Member{Node: replication.NodeID(d + "1"), Domain: replication.DomainID(d)}
			cfg.ISR = append(cfg.ISR, r)
		}
		return cfg
	}
	for _, c := range []struct {
		view string
		cfg  *replication.Config
		want error
	}{
		{"a1 a/FENCED\nb1 b", inSync("a", "b"), nil},
		{"a1 a/FENCED\nb1 b", inSync("a"), replication.ErrNoInSyncReplica},
		{"a1 a/INACTIVE\nb1 b", inSync("a"), replication.ErrNoInSyncReplica},
		{"a1 a/REJOINING\nb1 b", inSync("a"), nil},
		{"a1 a offline\nb1 b", inSync("a"), nil},
		{"a1 a\nb1 b", &replication.Config{}, nil},
		{"a1 a\nb1 b", at("b1", "b"), nil},
		{"a1 a\nb1 b", at("a1", "a"), replication.ErrBusy},
		{"a1 a/DRAINING\nb1 b", at("a1", "a"), replication.ErrBusy},
		{"a1 a offline\nb1 b", at("a1", "a"), nil},
		{"a1 a/FENCED\nb1 b", at("a1", "a"), nil},
		{"a1 a/INACTIVE\nb1 b", at("a1", "a"), nil},
		{"a1 a/REJOINING\nb1 b", at("a1", "a"), nil},
		{"a1 a\nb1 b/FENCED", &replication.Config{}, ErrDomainNotActive},
		{"a1 a\nb1 b/STANDBY", at("b1", "b"), ErrDomainNotActive},
		{"a1 a\nb1 b witness", &replication.Config{}, ErrOtherNode},
	} {
		if err := checkAttach(c.cfg, parseView(c.view), "b1"); !errors.Is(err, c.want) {
			t.Errorf("%q, %+v: %v, want %v", c.view, c.cfg.Coord, err, c.want)
		}
	}
}

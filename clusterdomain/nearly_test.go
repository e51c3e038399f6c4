package clusterdomain

import "testing"

// TestNearly: what a node says of itself is told at once, but for how full its pools are by a little.
func TestNearly(t *testing.T) {
	was := Node{Name: "a", Pools: []Pool{{UUID: "p", Total: 256 << 20, Used: 100 << 20}, {UUID: "q", Total: 1 << 20}}, Fragile: 1}
	for name, tt := range map[string]struct {
		change func(*Node)
		nearly bool
	}{
		"the same":          {func(*Node) {}, true},
		"a little more":     {func(n *Node) { n.Pools[0].Used += 1 << 20 }, true},
		"a little less":     {func(n *Node) { n.Pools[0].Used -= 1 << 20 }, true},
		"more":              {func(n *Node) { n.Pools[0].Used += 1<<20 + 1 }, false},
		"less":              {func(n *Node) { n.Pools[0].Used -= 1<<20 + 1 }, false},
		"more of a small":   {func(n *Node) { n.Pools[1].Used += 8 << 10 }, false},
		"larger":            {func(n *Node) { n.Pools[0].Total++ }, false},
		"another replica":   {func(n *Node) { n.Pools[0].Provisioned++ }, false},
		"another pool":      {func(n *Node) { n.Pools[1].UUID = "r" }, false},
		"a pool less":       {func(n *Node) { n.Pools = n.Pools[:1] }, false},
		"another device":    {func(n *Node) { n.Fragile++ }, false},
		"another address":   {func(n *Node) { n.Address = "elsewhere" }, false},
		"another of labels": {func(n *Node) { n.Labels = map[string]string{"rack": "1"} }, false},
	} {
		n := was
		n.Pools = append([]Pool(nil), was.Pools...)
		tt.change(&n)
		used := n.Pools[0].Used
		if n.nearly(was) != tt.nearly || n.Pools[0].Used != used {
			t.Errorf("%s: nearly is %v, used %d", name, n.nearly(was), n.Pools[0].Used-used)
		}
	}
}

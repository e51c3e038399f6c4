package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
)

// networks are network namespaces, one for each site, on a common bridge. All
// names carry the caller's process id.
type networks struct {
	bridge string
	sites  []string
}

func planNetworks(nodes []NodeSpec) *networks {
	n := &networks{bridge: fmt.Sprintf("tdm%d", os.Getpid())}
	for _, ns := range nodes {
		if !slices.Contains(n.sites, ns.Site) {
			n.sites = append(n.sites, ns.Site)
		}
	}
	return n
}

func (n *networks) namespace(i int) string { return fmt.Sprintf("%s-%d", n.bridge, i) }
func (n *networks) outer(i int) string     { return fmt.Sprintf("%so%d", n.bridge, i) }
func (n *networks) inner(i int) string     { return fmt.Sprintf("%si%d", n.bridge, i) }

// address is that of a site, from the range for tests of networks (RFC 2544).
func (n *networks) address(i int) string { return fmt.Sprintf("198.18.77.%d", 10+i) }

// addresses are two for each node, as freePorts gives them on loopback.
func (n *networks) addresses(nodes []NodeSpec) []string {
	var all []string
	for i, ns := range nodes {
		ip := n.address(slices.Index(n.sites, ns.Site))
		all = append(all, net.JoinHostPort(ip, fmt.Sprint(7000+2*i)), net.JoinHostPort(ip, fmt.Sprint(7001+2*i)))
	}
	return all
}

// make sets the networks up; u takes them down.
func (n *networks) make(ctx context.Context, u *Undo) error {
	ip := func(args ...string) error {
		_, err := Run(ctx, append([]string{"ip"}, args...)...)
		return err
	}
	if err := ip("link", "add", n.bridge, "type", "bridge"); err != nil {
		return err
	}
	u.Add("bridge "+n.bridge, func() error {
		_, err := Run(context.Background(), "ip", "link", "del", n.bridge)
		return err
	})
	if err := ip("link", "set", n.bridge, "up"); err != nil {
		return err
	}
	for i := range n.sites {
		ns := n.namespace(i)
		if err := ip("netns", "add", ns); err != nil {
			return err
		}
		u.Add("network "+ns, func() error { // takes both ends of the cable with it
			_, err := Run(context.Background(), "ip", "netns", "del", ns)
			return err
		})
		for _, args := range [][]string{
			{"link", "add", n.outer(i), "type", "veth", "peer", "name", n.inner(i), "netns", ns},
			{"link", "set", n.outer(i), "master", n.bridge, "up"},
			{"-n", ns, "addr", "add", n.address(i) + "/24", "dev", n.inner(i)},
			{"-n", ns, "link", "set", n.inner(i), "up"},
			{"-n", ns, "link", "set", "lo", "up"},
		} {
			if err := ip(args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// inside returns the command line that runs argv in the network of a site. Mounts stay common to all.
func (c *Cluster) inside(site string, argv ...string) []string {
	if c.nets == nil {
		return argv
	}
	return append([]string{"nsenter", "--net=/run/netns/" + c.nets.namespace(slices.Index(c.nets.sites, site)), "--"}, argv...)
}

// Cut separates a site from all others, without a word to either end: packets are lost. Needs Spec.Networks.
func (c *Cluster) Cut(ctx context.Context, site string) error { return c.cable(ctx, site, "down") }

// Heal takes Cut back.
func (c *Cluster) Heal(ctx context.Context, site string) error { return c.cable(ctx, site, "up") }

func (c *Cluster) cable(ctx context.Context, site, state string) error {
	if c.nets == nil {
		return fmt.Errorf("site %s is on loopback with all others", site)
	}
	_, err := Run(ctx, "ip", "link", "set", c.nets.outer(slices.Index(c.nets.sites, site)), state)
	return err
}

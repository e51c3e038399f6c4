package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// networks are network namespaces, one for each site, with one interface each whose packets this process carries to the
// others (see fabric).
type networks struct {
	sites  []string
	spaces []*Namespace
	fabric *fabric
}

// device is the name of the interface in every namespace.
const device = "tandem0"

func planNetworks(nodes []NodeSpec) *networks {
	n := &networks{}
	for _, ns := range nodes {
		if !slices.Contains(n.sites, ns.Site) {
			n.sites = append(n.sites, ns.Site)
		}
	}
	n.fabric = newFabric(len(n.sites))
	return n
}

// address is that of a site, from the range for tests of networks (RFC 2544). fabric finds the site by it.
func (n *networks) address(i int) string { return fmt.Sprintf("198.18.77.%d", firstHost+i) }

// addresses are two for each node, for its peers and its kvdb, as freePorts gives them on loopback.
func (n *networks) addresses(nodes []NodeSpec) []string {
	var all []string
	for i, ns := range nodes {
		all = append(all, n.at(ns.Site, 7000+2*i), n.kvdbAt(ns.Site, 7001+2*i))
	}
	return all
}

func (n *networks) at(site string, port int) string {
	return net.JoinHostPort(n.address(slices.Index(n.sites, site)), fmt.Sprint(port))
}

// kvdbAt is at for a port of the kvdb.
func (n *networks) kvdbAt(site string, port int) string {
	n.fabric.kvdb[port] = true
	return n.at(site, port)
}

// make sets the networks up; u takes them down. Needs root, ip(8), nsenter(1) and /dev/net/tun.
func (n *networks) make(ctx context.Context, u *Undo) error {
	u.Add("networks", n.close)
	for i := range n.sites {
		var tun *os.File
		space, err := newNamespace(func() (err error) {
			tun, err = openTUN()
			return err
		})
		if err != nil {
			return fmt.Errorf("network of site %s: %w", n.sites[i], err)
		}
		n.spaces = append(n.spaces, space)
		n.fabric.plug(i, tun)
		for _, args := range [][]string{
			{"link", "set", "lo", "up"},
			{"link", "set", device, "mtu", fmt.Sprint(mtu), "up"},
			{"addr", "add", n.address(i) + "/24", "dev", device},
		} {
			if _, err := Run(ctx, space.Inside(append([]string{"ip"}, args...)...)...); err != nil {
				return err
			}
		}
	}
	n.fabric.start()
	return nil
}

func (n *networks) close() error {
	errs := []error{n.fabric.close()}
	for _, s := range n.spaces {
		errs = append(errs, s.Close())
	}
	n.spaces = nil
	return errors.Join(errs...)
}

// openTUN makes the device in the network of the calling thread.
func openTUN() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(device)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make %s: %w", device, err)
	}
	return os.NewFile(uintptr(fd), device), nil // not before: what is no device yet cannot be polled
}

// space is the network of a site; nil if that is the one of this process.
func (c *Cluster) space(site string) *Namespace {
	switch {
	case c.spec.Namespace != nil:
		return c.spec.Namespace
	case c.nets != nil:
		return c.nets.spaces[slices.Index(c.nets.sites, site)]
	default:
		return nil
	}
}

// inside returns the command line that runs argv in the network of a site. Mounts stay common to all.
func (c *Cluster) inside(site string, argv ...string) []string {
	if n := c.space(site); n != nil {
		return n.Inside(argv...)
	}
	return argv
}

// dial connects as a process in the site does.
func (c *Cluster) dial(ctx context.Context, site, network, address string) (net.Conn, error) {
	if n := c.space(site); n != nil {
		return n.Dial(ctx, network, address)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// SetLink changes what becomes of packets that one site sends to another from now on. Needs Spec.Networks.
func (c *Cluster) SetLink(from, to string, l Link) {
	c.nets.fabric.set(slices.Index(c.nets.sites, from), slices.Index(c.nets.sites, to), l)
}

// Cut separates a site from all others, without a word to either end: packets are lost. Needs Spec.Networks.
func (c *Cluster) Cut(site string) { c.cable(site, Link{Lost: true}) }

// Heal takes Cut back, and every SetLink of the site.
func (c *Cluster) Heal(site string) { c.cable(site, Link{}) }

func (c *Cluster) cable(site string, l Link) {
	for _, other := range c.nets.sites {
		if other != site {
			c.SetLink(site, other, l)
			c.SetLink(other, site, l)
		}
	}
}

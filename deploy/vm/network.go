package vm

import (
	"context"
	"fmt"
	"os"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// Network is a bridge on the host with a tap device for each machine. Names and
// addresses follow from the caller's process id: two runs are not in each other's way.
type Network struct{ name string }

// NewNetwork makes the network; u takes it down. Needs root, ip(8) and /dev/net/tun.
func NewNetwork(ctx context.Context, machines int, u *lab.Undo) (*Network, error) {
	n := &Network{name: fmt.Sprintf("tvm%d", os.Getpid())}
	ip := func(args ...string) error {
		_, err := lab.Run(ctx, append([]string{"ip"}, args...)...)
		return err
	}
	drop := func(dev string) {
		u.Add("network device "+dev, func() error {
			_, err := lab.Run(context.Background(), "ip", "link", "del", dev)
			return err
		})
	}
	if err := ip("link", "add", n.name, "type", "bridge"); err != nil {
		return nil, err
	}
	drop(n.name)
	if err := ip("addr", "add", n.Host()+"/24", "dev", n.name); err != nil {
		return nil, err
	}
	if err := ip("link", "set", n.name, "up"); err != nil {
		return nil, err
	}
	for i := range machines {
		if err := ip("tuntap", "add", n.Tap(i), "mode", "tap"); err != nil {
			return nil, err
		}
		drop(n.Tap(i))
		if err := ip("link", "set", n.Tap(i), "master", n.name, "up"); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Tap is the device of the i-th machine.
func (n *Network) Tap(i int) string { return fmt.Sprintf("%st%d", n.name, i) }

// MAC is the i-th machine's, of those that anybody may give.
func (n *Network) MAC(i int) string { return fmt.Sprintf("52:54:00:74:6d:%02x", 16+i) }

// Host is the host's address, from the range for tests of networks (RFC 2544).
func (n *Network) Host() string { return n.address(1) }

// Address is the i-th machine's.
func (n *Network) Address(i int) string { return n.address(10 + i) }

func (n *Network) address(last int) string { return fmt.Sprintf("198.19.%d.%d", os.Getpid()%256, last) }

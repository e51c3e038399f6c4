package vm

import (
	"context"
	"fmt"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// Network is a network apart from that of the host, with a bridge that has a tap device for each machine.
type Network struct{ *lab.Namespace }

// bridge is the name of the bridge in its namespace.
const bridge = "bridge"

// NewNetwork makes the network; u takes it down. Needs root, ip(8), nsenter(1) and /dev/net/tun.
func NewNetwork(ctx context.Context, machines int, u *lab.Undo) (*Network, error) {
	space, err := lab.NewNamespace()
	if err != nil {
		return nil, fmt.Errorf("network of the machines: %w", err)
	}
	u.Add("network", space.Close)
	n := &Network{space}
	commands := [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", bridge, "type", "bridge"},
		{"addr", "add", n.Host() + "/24", "dev", bridge},
		{"link", "set", bridge, "up"},
	}
	for i := range machines {
		commands = append(commands, []string{"tuntap", "add", n.Tap(i), "mode", "tap"}, []string{"link", "set", n.Tap(i), "master", bridge, "up"})
	}
	for _, args := range commands {
		if _, err := lab.Run(ctx, n.Inside(append([]string{"ip"}, args...)...)...); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Tap is the device of the i-th machine.
func (n *Network) Tap(i int) string { return fmt.Sprintf("tap%d", i) }

// MAC is the i-th machine's, of those that anybody may give.
func (n *Network) MAC(i int) string { return fmt.Sprintf("52:54:00:74:6d:%02x", 16+i) }

// Host is the address of what runs in the network but in no machine, from the range for tests of networks (RFC 2544).
func (n *Network) Host() string { return n.address(1) }

// Address is the i-th machine's.
func (n *Network) Address(i int) string { return n.address(10 + i) }

func (n *Network) address(last int) string { return fmt.Sprintf("198.19.0.%d", last) }

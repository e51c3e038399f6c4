package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// World is a network with clusters in it, apart from that of the machine. Its methods are not safe for concurrent use.
type World struct {
	bin, dir string
	space    *lab.Namespace
	undo     *lab.Undo
	nodes    int   // made so far: their addresses follow from it
	disk     int64 // bytes of the XFS that each node made from now on has as /var/lib/tandem; 0 = what this machine has there
}

// The addresses. Nodes are 10.99.0.11 and so on; that of the bridge is the way out of each, though there is nothing outside.
const (
	bridge      = "kube0"
	gateway     = "10.99.0.1"
	nodeAddress = "10.99.0.%d/24"
	firstNode   = 11
)

// NewWorld makes a network, with everything of its clusters below dir, of the programs that Build has made in bin, and of more images, which every node
// gets. What it makes is taken back by u.
func NewWorld(ctx context.Context, bin, dir string, u *lab.Undo, images ...Image) (*World, error) {
	w := &World{bin: bin, dir: dir, undo: u}
	if err := checkGroups(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(w.imageDir(), 0o755); err != nil {
		return nil, err
	}
	base, err := baseImages(ctx, bin)
	if err != nil {
		return nil, err
	}
	for _, m := range append(base, images...) {
		if err := w.writeImage(m); err != nil {
			return nil, err
		}
	}
	if w.space, err = lab.NewNamespace(); err != nil {
		return nil, err
	}
	u.Add("network of the clusters", w.space.Close)
	return w, w.ip(ctx,
		"link set lo up",
		"link add "+bridge+" type bridge",
		"addr add "+gateway+"/24 dev "+bridge,
		"link set "+bridge+" up")
}

func (w *World) imageDir() string { return filepath.Join(w.dir, "images") }

func (w *World) writeImage(m Image) (err error) {
	f, err := os.Create(filepath.Join(w.imageDir(), strings.NewReplacer("/", "-", ":", "-").Replace(m.Name)+".tar"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = m.WriteTo(f)
	return err
}

// ip runs commands of ip(8) in the network.
func (w *World) ip(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		if _, err := lab.Run(ctx, w.space.Inside(append([]string{"ip"}, strings.Fields(c)...)...)...); err != nil {
			return err
		}
	}
	return nil
}

// plug makes a network for a node, with its only device on the bridge.
func (w *World) plug(ctx context.Context, n *Node) (err error) {
	if n.space, err = lab.NewNamespace(); err != nil {
		return err
	}
	w.undo.Add("network of "+n.Name, n.space.Close)
	device := fmt.Sprintf("node%d", n.number)
	if err := w.ip(ctx,
		"link add "+device+" type veth peer name eth0",
		"link set eth0 netns "+n.space.Path(),
		"link set "+device+" master "+bridge+" up",
	); err != nil {
		return err
	}
	return n.ip(ctx, "link set lo up", "addr add "+n.Address+"/24 dev eth0", "link set eth0 up", "route add default via "+gateway)
}

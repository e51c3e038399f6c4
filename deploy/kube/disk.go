package kube

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// giveDisk gives a node that does not run yet an XFS of its own as /var/lib/tandem, of size bytes, in a sparse file: what this machine has there need not have
// reflink, which snapshots want.
func (n *Node) giveDisk(ctx context.Context, size int64) error {
	image, dir := filepath.Join(n.dir, "disk.img"), filepath.Join(n.dir, "tandem")
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	if _, err := lab.Run(ctx, "mkfs.xfs", "-q", "-m", "reflink=1", image); err != nil {
		return err
	}
	if _, err := lab.Run(ctx, "mount", "-o", "loop", image, dir); err != nil {
		return err
	}
	n.cluster.world.undo.Add("disk of "+n.Name, func() error {
		err := unix.Unmount(dir, 0)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(dir, unix.MNT_DETACH)
		}
		return err
	})
	return nil
}

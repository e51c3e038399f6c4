package daemon

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// failover is what the arbiter of this node is told. What it calls is there before it runs, see Run.
func (d *daemon) failover() clusterdomain.Failover {
	f := d.c.Failover
	return clusterdomain.Failover{
		Enabled: f.Enabled, Confirm: f.Confirm, MinInterval: f.MinInterval, QuorumLoss: f.QuorumLoss, AutoPromote: f.AutoPromote,
		Grant:     d.c.Replication.LeaseGrant,
		LastHeard: func(node string) time.Time { return d.peers.Liveness(replication.NodeID(node)).LastSeen },
		Term:      d.kvdbTerm,
		Now:       boottime,
		Attach:    d.assume,
	}
}

// assume attaches a volume after a failover as an operator does, with the node's default front end.
func (d *daemon) assume(ctx context.Context, id, reason string) (epoch uint64, err error) {
	r, err := d.service.AttachVolume(ctx, &volumepb.AttachVolumeRequest{Volume: id, Actor: "node " + d.c.NodeID, Reason: reason})
	if err != nil {
		return 0, err
	}
	return r.GetVolume().GetEpoch(), nil
}

// boottime is CLOCK_BOOTTIME: it goes on while the machine sleeps.
func boottime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail for a clock that the kernel has
	return time.Duration(ts.Nano())
}

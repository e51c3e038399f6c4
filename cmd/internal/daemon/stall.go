package daemon

import (
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/volume"
)

// stall says why a volume's writes wait, nil if they do not.
func stall(st *replvolume.Status) *volume.Stall {
	cause := st.Stall
	if cause == core.StallNone {
		return nil
	}
	if cause == core.StallNeedReplica && st.Config.Protection == replication.MaxProtection && st.Config.Needs.StallMs == 0 {
		cause = core.StallProtection // nothing is going to be evicted
	}
	text := stallText[cause]
	if st.Detaching && cause != core.StallDetaching {
		text = "the volume is being detached, which goes on by itself when this has ended: " + text
	}
	return &volume.Stall{Cause: string(cause), Text: text, Since: st.StalledSince}
}

// stallText says what a stall means and what to do.
var stallText = map[core.Stall]string{
	core.StallTakeover:     "the volume is being taken over",
	core.StallNoReplica:    "no in-sync replica answers: bring a node that holds one back, see the replicas of tandemctl volume inspect",
	core.StallNeedReplica:  "an in-sync replica is out of reach; it is evicted soon if the others and the kvdb are there",
	core.StallReadLease:    "reads wait: an in-sync replica has not renewed its read lease in time; it is evicted if it stays silent",
	core.StallKVDB:         "the kvdb is out of reach, so that the in-sync set cannot be changed: bring a majority of its members back",
	core.StallProtection:   "the protection of the volume asks for a replica in sync that is not: writes wait until it is back, for as long as \"tandemctl volume inspect\" says; \"tandemctl volume update --protection max-availability\" lets them go on without it",
	core.StallGroup:        "a replica has left, and the other volumes of the group have to leave its cluster domain too before writes go on: at most 5 seconds",
	core.StallResyncStart:  "a resync is starting; a pause of milliseconds",
	core.StallSnapshot:     "a snapshot is being taken; a pause of milliseconds",
	core.StallDetaching:    "the volume is being detached: its last requests and a flush have to end on every in-sync replica",
	core.StallHandover:     "the volume is being moved to another node by plan; a pause of milliseconds, and it stays here if that node does not take over in time",
	core.StallDomain:       "the in-sync set has to be changed, and this node's cluster domain may not do that: activate it",
	core.StallRollback:     "the in-sync set has to be changed, and the kvdb knows less than the replicas: it was restored from a backup or replaced: run \"tandemctl kvdb import --all --dry-run\"",
	core.StallConfigChange: "the in-sync set is being changed",
	core.StallNotAttached:  "the volume is not attached here",
}

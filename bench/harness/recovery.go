package main

import (
	"context"
	"fmt"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// recovery is what it takes to be whole again.
type recovery struct {
	Resyncs  []resync `json:"resyncs"`  // nobody else writes
	Busy     resync   `json:"busy"`     // of the whole set, while a client runs depth1Job
	Client   during   `json:"client"`   // that client
	Takeover takeover `json:"takeover"` // after writes all over the set
}

// resync is what one resync took.
type resync struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"` // from SYNCING to in sync
	MBps    float64 `json:"mb_per_s"`
}

// during is what depth1Job measured without and with a resync beside it.
type during struct {
	Quiet  measurement `json:"quiet"`
	Resync measurement `json:"resync"`
}

// takeover is what the return of a coordinator took whose process was killed in the middle of writes.
type takeover struct {
	FirstRead  float64 `json:"first_read_s"` // from SIGKILL
	Bytes      int64   `json:"bytes"`        // that had to be compared, of those that were left after the first read
	Reconciled float64 `json:"reconciled_s"` // from the first read
}

// resyncSizes are how much of the set is overwritten before each resync, in MiB; 0 all of it.
var resyncSizes = []int{16, 256, 0}

// measureRecovery resyncs by delta, alone and beside a client, and kills the coordinator.
func (t *tandem) measureRecovery(ctx context.Context, f *fio) (r recovery, err error) {
	for _, mib := range resyncSizes {
		size := f.size
		if mib > 0 {
			size = fmt.Sprintf("%dM", mib)
		}
		one, err := t.resync(ctx, f, size, nil)
		if err != nil {
			return r, err
		}
		r.Resyncs = append(r.Resyncs, one)
	}
	if r.Client.Quiet, err = f.run(ctx, depth1Job, t.target); err != nil {
		return r, err
	}
	r.Busy, err = t.resync(ctx, f, f.size, func() (err error) {
		short := *f // it should end with the resync
		short.runtime = 2 * time.Second
		r.Client.Resync, err = short.run(ctx, depth1Job, t.target)
		return err
	})
	if err != nil {
		return r, err
	}
	r.Takeover, err = t.takeover(ctx, f)
	return r, err
}

// resync kills the node of the second replica, overwrites the first bytes of the set, and times the resync that follows its
// return. Beside, if not nil, runs when it has begun; it ends with it or before.
func (t *tandem) resync(ctx context.Context, f *fio, size string, beside func() error) (resync, error) {
	if err := t.c.Kill("site-b"); err != nil {
		return resync{}, err
	}
	part := *f
	part.size = size
	if err := part.precondition(ctx, t.target); err != nil {
		return resync{}, err
	}
	if err := t.c.Start("site-b"); err != nil {
		return resync{}, err
	}
	var r resync
	var began time.Time
	done := make(chan error, 1)
	err := lab.Until(ctx, "the replica is in sync", 5*time.Minute, 20*time.Millisecond, func() (bool, error) {
		v, err := t.c.Inspect(ctx, t.c.Node("a1"), volumeName)
		if err != nil {
			return false, err
		}
		inSync := true
		for _, rep := range v.Volume.Replicas {
			inSync = inSync && rep.InSync
			if !rep.InSync && rep.ResyncTotal > 0 {
				r.Bytes = max(r.Bytes, rep.ResyncTotal)
				if began.IsZero() {
					began = time.Now()
					if beside != nil {
						go func() { done <- beside() }()
					}
				}
			}
		}
		return inSync && !began.IsZero(), nil
	})
	if err != nil {
		return resync{}, err
	}
	r.Seconds = time.Since(began).Seconds()
	r.MBps = float64(r.Bytes) / 1e6 / r.Seconds
	if beside != nil {
		err = <-done
	}
	return r, err
}

// firstRead connects until a read is answered.
const firstRead = `
import nbd, time
while True:
    try:
        h = nbd.NBD()
        h.connect_uri("%s")
        h.pread(4096, 0)
        break
    except nbd.Error:
        time.sleep(0.01)
`

// takeover kills the coordinator's process after writes all over the set, and starts it again.
func (t *tandem) takeover(ctx context.Context, f *fio) (takeover, error) {
	if _, err := f.run(ctx, scatterJob, t.target); err != nil {
		return takeover{}, err
	}
	node := t.c.Node("a1")
	killed := time.Now()
	if err := node.Kill(); err != nil {
		return takeover{}, err
	}
	if err := t.c.StartNode(node); err != nil {
		return takeover{}, err
	}
	if _, err := lab.Run(ctx, "/usr/bin/python3", "-c", fmt.Sprintf(firstRead, t.uri)); err != nil {
		return takeover{}, err
	}
	read := time.Now()
	r := takeover{FirstRead: read.Sub(killed).Seconds()}
	err := lab.Until(ctx, "the replicas are reconciled", 5*time.Minute, 20*time.Millisecond, func() (bool, error) {
		v, err := t.c.Inspect(ctx, node, volumeName)
		if err != nil {
			return false, err
		}
		r.Bytes = max(r.Bytes, v.Volume.Unreconciled)
		return v.Volume.Unreconciled == 0, nil
	})
	r.Reconciled = time.Since(read).Seconds()
	return r, err
}

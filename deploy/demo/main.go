// Command demo tells Tandem's story on one machine, as `make demo`.
//
// Two sites and a witness run as processes with their own directories and ports
// on loopback. A volume with a replica in each site carries PostgreSQL on XFS
// under a writing load; a client outside keeps a ledger of every transaction
// that was confirmed. Every process of one site is killed, the other one takes
// over by itself, and the ledger is compared. Then the dead site returns, is
// resynced under load and the application goes back by plan; in the end the two
// replicas are compared byte by byte. With -failovers one site is lost after the
// other, with -moves the volume moves by plan under a database that goes on.
//
// Without root, FUSE or a loop device the same story is told over NBD with a
// verifying writer instead of a file system. What the demo made is taken back
// however it ends; it exits 0 only if nothing was lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// needSpace is what a run writes at most, in bytes: two replicas of the volume, logs, the kvdb.
const needSpace = 6 << 30

type options struct {
	bin, dir, kvdb string
	load, limit    time.Duration
	nbd, keep      bool
	failovers      int
	moves          int
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory with tandemd, tandemctl and etcd")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where to make the demo's directory; on a disk with XFS or ext4")
	flag.StringVar(&o.kvdb, "kvdb", "raft", "raft (embedded) or etcd (three real members)")
	flag.DurationVar(&o.load, "load", 20*time.Second, "how long to write before the site is killed")
	flag.DurationVar(&o.limit, "limit", 10*time.Minute, "give up after this long")
	flag.BoolVar(&o.nbd, "nbd", false, "tell the story over NBD, though a block device could be had")
	flag.IntVar(&o.failovers, "failovers", 0, "instead of the story: lose the site where PostgreSQL runs so many times, one after the other")
	flag.IntVar(&o.moves, "moves", 0, "instead of the story: move the volume by plan so many times under PostgreSQL that writes")
	flag.BoolVar(&o.keep, "keep", false, "leave the demo's directory, with all logs, for a look")
	flag.Parse()

	// The first signal ends the story and takes everything back; the second ends the demo at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := demo(ctx, o, os.Stdout)
	switch {
	case err == nil:
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "demo: interrupted, everything was taken back")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo:", err) // of which context.DeadlineExceeded is -limit
		os.Exit(1)
	}
}

// demo runs the story and takes back what it made.
func demo(ctx context.Context, o options, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	switch {
	case o.kvdb != "raft" && o.kvdb != "etcd":
		return fmt.Errorf("-kvdb %q: raft or etcd", o.kvdb)
	case o.failovers < 0 || o.moves < 0 || o.failovers > 0 && o.moves > 0 || o.moves > 0 && o.nbd:
		return errors.New("-failovers and -moves: one of them, 1 or more, and -moves without -nbd")
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	if err := enoughSpace(o.dir); err != nil {
		return err
	}
	why := "asked for"
	if !o.nbd {
		why = canMount(ctx)
		o.nbd = why != ""
	}
	if o.nbd {
		fmt.Fprintf(out, "no block device here (%s): the story is told over NBD, with a verifying writer\n", why)
		if missing := canWrite(ctx); missing != "" {
			return errors.New(missing)
		}
	}

	work, err := os.MkdirTemp(o.dir, "tandem-demo-")
	if err != nil {
		return err
	}
	var u lab.Undo
	defer func() { err = errors.Join(err, u.Run()) }() // also in a panic
	u.Add("directory "+work, func() error {
		if o.keep {
			fmt.Fprintf(out, "left in place: %s\n", work)
			return nil
		}
		return os.RemoveAll(work)
	})
	// User postgres has to reach its data directory.
	if err := errors.Join(os.Chmod(work, 0o755), os.Mkdir(filepath.Join(work, "log"), 0o755)); err != nil {
		return err
	}
	lab.AdoptOrphans()

	frontend := "fuseloop"
	var w workload
	switch {
	case o.nbd:
		frontend = "nbd"
		w, err = newNBDWorkload(work, &u)
	case o.moves > 0: // a loop device of the daemon cannot follow
		frontend = "nbd"
		w, err = newPGWorkload(work, newFollower(work, &u), &u)
	default:
		w, err = newPGWorkload(work, nil, &u)
	}
	if err != nil {
		return err
	}
	c, err := lab.NewCluster(lab.Spec{
		Bin: bin, Work: work, KVDB: o.kvdb, Frontend: frontend, Nodes: nodes, Failover: "aggressive",
		Adjust: func(_ string, config map[string]any) {
			if o.failovers > 0 { // losses follow each other faster than in life
				config["failover"] = map[string]any{"profile": "aggressive", "minInterval": "10s"}
			}
		},
	}, &u)
	if err != nil {
		return err
	}
	s := &story{c: c, w: w, kvdb: o.kvdb, out: out, load: o.load, failovers: o.failovers, moves: o.moves}
	if err := s.tell(ctx); err != nil {
		if s.lost > 0 {
			s.summary()
		}
		return err
	}
	if err := u.Run(); err != nil {
		return err
	}
	s.summary()
	return nil
}

func enoughSpace(dir string) error {
	free, err := freeSpace(dir)
	if err != nil {
		return err
	}
	if free < needSpace {
		return fmt.Errorf("%s has %d MiB free, the demo needs %d (choose another with -dir)", dir, free>>20, int64(needSpace)>>20)
	}
	return nil
}

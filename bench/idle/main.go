// Command idle measures what attached volumes cost a daemon that nobody reads or
// writes through: its memory and its processor time with none, 100 and 1,000 of
// them, and how fast volumes are created and attached on the way.
//
// Two nodes in two domains and a witness, the embedded kvdb; all volumes are
// attached at one node and have a replica there and at the other one. It is a
// benchmark: nothing fails because it was slow, only if something did not succeed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/bench/machine"
	"github.com/tandem-storage/tandem/deploy/lab"
)

// options of a run.
type options struct {
	bin, out, dir string
	frontend      string
	counts        []int
	size          int64
	window        time.Duration
	settle        time.Duration
	parallel      int
}

func main() {
	o := options{counts: []int{0, 100, 200, 1000}}
	flag.StringVar(&o.bin, "bin", "bin", "directory with tandemd and tandemctl")
	flag.StringVar(&o.out, "out", "bench/results", "directory for the results")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where to make the working directory; on a disk with XFS or ext4")
	flag.StringVar(&o.frontend, "frontend", "fuseloop", "by which volumes are attached: fuseloop or nbd")
	flag.Func("counts", "how many volumes are attached when it is measured, ascending, separated by commas; default 0,100,200,1000", func(s string) error {
		o.counts = nil
		for word := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(word)
			if err != nil {
				return err
			}
			o.counts = append(o.counts, n)
		}
		if !slices.IsSorted(o.counts) || o.counts[0] < 0 {
			return errors.New("not ascending")
		}
		return nil
	})
	flag.Int64Var(&o.size, "size", 1<<30, "bytes of a volume")
	flag.DurationVar(&o.settle, "settle", 30*time.Second, "how long nothing happens before it is measured")
	flag.DurationVar(&o.window, "window", time.Minute, "how long processor time is measured")
	flag.IntVar(&o.parallel, "parallel", 10, "requests at a time")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	lab.AdoptOrphans()
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "idle:", err)
		os.Exit(1)
	}
}

// bench measures everything and writes the results.
func bench(ctx context.Context, o options) (err error) {
	for _, p := range []*string{&o.bin, &o.out, &o.dir} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	work, err := os.MkdirTemp(o.dir, "tandem-idle-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	var u lab.Undo
	defer func() { err = errors.Join(err, u.Run()) }()
	r := &report{Began: time.Now().UTC(), Machine: machine.Describe(ctx, o.dir), Frontend: o.frontend, SizeBytes: o.size, Parallel: o.parallel}
	c, err := found(ctx, o, work, &u)
	if err != nil {
		return err
	}
	for _, n := range o.counts {
		s, err := c.grow(ctx, n)
		if err != nil {
			return err
		}
		if s.Nodes, err = c.rest(ctx); err != nil {
			return err
		}
		r.Steps = append(r.Steps, s)
		fmt.Fprintf(os.Stderr, "%+v\n", s)
	}
	if r.End, err = c.shrink(ctx); err != nil {
		return err
	}
	return r.write(o.out, os.Stdout)
}

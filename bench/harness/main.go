// Command harness measures Tandem beside the floor of the machine it runs on, as
// `make bench`.
//
// The same fio jobs run on a raw, fully written file (the floor: no server, no
// replication) and on a volume with two replicas, each daemon a process of its
// own on loopback, through NBD on a unix socket. A gRPC echo of a 4 KiB message
// says what one round trip costs. Figures of one machine are comparable among
// each other, not with another machine's.
//
// It is a benchmark and never a test: nothing fails because it was slow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/bench/machine"
	"github.com/tandem-storage/tandem/deploy/lab"
)

// options of a run.
type options struct {
	bin, jobs, out, dir string
	size                string // of the set, for fio
	runtime             time.Duration
	rounds              int
	only                string
	noDemo              bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == echoServerArg {
		if err := serveEcho(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "harness:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory with tandemd, tandemctl and demo")
	flag.StringVar(&o.jobs, "jobs", "bench/fio", "directory with the fio jobs")
	flag.StringVar(&o.out, "out", "bench/results", "directory for the results")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where to make the working directory; on a disk with XFS or ext4")
	flag.StringVar(&o.size, "size", "1G", "size of the set")
	flag.DurationVar(&o.runtime, "runtime", 5*time.Second, "how long each job runs")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each job runs; the median is shown")
	flag.StringVar(&o.only, "only", "", "run only jobs whose name begins so; \"none\" for no job")
	flag.BoolVar(&o.noDemo, "no-demo", false, "do not run the demo for the storage RTO")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		os.Exit(1)
	}
}

// bench measures everything and writes the results.
func bench(ctx context.Context, o options) (err error) {
	for _, p := range []*string{&o.bin, &o.jobs, &o.out, &o.dir} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	jobs, err := loadJobs(o.jobs, o.only)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(o.dir, "tandem-bench-")
	if err != nil {
		return err
	}
	var u lab.Undo
	defer func() { err = errors.Join(err, u.Run()) }()
	u.Add(work, func() error { return os.RemoveAll(work) })

	r := &report{Began: time.Now().UTC(), Machine: machine.Describe(ctx, o.dir), Size: o.size, Runtime: o.runtime.Seconds(), Rounds: o.rounds}
	if version, err := lab.Run(ctx, "fio", "--version"); err == nil {
		r.Fio = strings.TrimSpace(version)
	}
	progress := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

	progress("gRPC echo")
	if r.Echo, err = measureEcho(ctx, &u); err != nil {
		return err
	}
	runner := &fio{dir: o.jobs, work: work, size: o.size, runtime: o.runtime}
	floor := target{name: "floor", file: filepath.Join(work, "floor")}
	if err := runner.precondition(ctx, floor); err != nil {
		return err
	}
	hop, err := startClientHop(ctx, work, o.size, &u)
	if err != nil {
		return err
	}
	t, err := startTandem(ctx, o.bin, work, o.size, &u)
	if err != nil {
		return err
	}
	if err := runner.precondition(ctx, t.target); err != nil {
		return err
	}
	for round := range o.rounds {
		for _, job := range jobs { // side by side, so that a noisy neighbour hits both
			targets := []target{floor, t.target}
			if job == depth1Job {
				targets = append(targets, hop)
			}
			for _, on := range targets {
				m, err := runner.run(ctx, job, on)
				if err != nil {
					return err
				}
				progress("round %d  %-16s %-7s %9.0f IOPS  p50 %8.1f us  p99 %8.1f us", round+1, job, on.name, m.IOPS, m.P50, m.P99)
				r.add(job, on.name, m)
			}
		}
	}
	progress("recovery")
	if r.Recovery, err = t.measureRecovery(ctx, runner); err != nil {
		return err
	}
	if err := t.close(ctx); err != nil {
		return err
	}
	if !o.noDemo {
		progress("demo")
		if r.StorageRTO, err = demoRTO(ctx, o.bin, o.dir); err != nil {
			return err
		}
	}
	return r.write(o.out, os.Stdout)
}

// Command pauses measures how long a consumer waits when something happens to
// its volume, as `make bench-pauses`: the other replica is evicted, its site is
// lost and the other one takes over by itself, it is moved by plan, or the group
// that it is in is cut or split.
//
// Every site is a network namespace with its own daemons, packets between them
// are delayed. The consumer writes one block after another over NBD and checks
// after each move that everything that was answered is there. Times are what the
// consumer sees, from answer to answer; of the loss of a site, from the SIGKILL.
//
// It is a benchmark: nothing fails because it was slow. It fails if something was lost.
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
	"sync"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/bench/machine"
	"github.com/tandem-storage/tandem/deploy/lab"
)

// options of a run.
type options struct {
	bin, out, dir string
	rtts          []time.Duration

	evictions, switchovers, cuts, splits, failovers int
	clusters                                        int
}

func main() {
	o := options{rtts: []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond}}
	flag.StringVar(&o.bin, "bin", "bin", "directory with tandemd and tandemctl")
	flag.StringVar(&o.out, "out", "bench/results", "directory for the results")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where to make the working directory; on a disk with XFS or ext4")
	flag.Func("rtt", "round trips between the sites, separated by commas; default 0,1ms,5ms,10ms", func(s string) error {
		o.rtts = nil
		for _, word := range strings.Split(s, ",") {
			d, err := time.ParseDuration(word)
			if err != nil {
				return err
			}
			o.rtts = append(o.rtts, d)
		}
		return nil
	})
	flag.IntVar(&o.evictions, "evictions", 20, "evictions of each kind for each round trip")
	flag.IntVar(&o.switchovers, "switchovers", 20, "switchovers for each round trip")
	flag.IntVar(&o.cuts, "cuts", 20, "cuts of a group for each round trip")
	flag.IntVar(&o.splits, "splits", 20, "splits of a group for each round trip")
	flag.IntVar(&o.failovers, "failovers", 200, "automatic failovers, at the last round trip, over all clusters")
	flag.IntVar(&o.clusters, "clusters", 4, "clusters that lose a site at the same time")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	lab.AdoptOrphans()
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "pauses:", err)
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
	work, err := os.MkdirTemp(o.dir, "tandem-pauses-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	var mu sync.Mutex
	progress := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
	r := &report{Began: time.Now().UTC(), Machine: machine.Describe(ctx, o.dir)}
	// What takes milliseconds has the machine for itself.
	alone, err := runAll(ctx, o.short(), 1, o.bin, filepath.Join(work, "alone"), progress)
	if err != nil {
		return err
	}
	together, err := runAll(ctx, o.failing(), o.clusters, o.bin, filepath.Join(work, "together"), progress)
	if err != nil {
		return err
	}
	r.Series = merge(append(alone, together...))
	if err := r.write(o.out, os.Stdout); err != nil {
		return err
	}
	return r.verdict()
}

// Events, as the report calls them.
const (
	evictionReset   = "replica killed, evicted"
	evictionSilence = "replica silent, evicted"
	plannedMove     = "planned switchover, held"
	groupCut        = "group cut, held"
	groupSplit      = "replicas killed, group split"
	siteLost        = "site killed, failover"
)

// groupOf is how many volumes the group has that is cut and split.
const groupOf = 3

// short are the jobs whose events take milliseconds to seconds.
func (o options) short() (jobs []job) {
	asIs := func(map[string]any) {}
	for _, rtt := range o.rtts {
		jobs = append(jobs,
			job{evictionReset, rtt, o.evictions, 1, asIs, func(ctx context.Context, c *cluster) (float64, error) { return c.eviction(ctx, false) }},
			job{evictionSilence, rtt, o.evictions, 1, asIs, func(ctx context.Context, c *cluster) (float64, error) { return c.eviction(ctx, true) }},
			job{plannedMove, rtt, o.switchovers, 1, asIs, func(ctx context.Context, c *cluster) (float64, error) { return c.switchover(ctx) }},
			job{groupCut, rtt, o.cuts, groupOf, asIs, func(ctx context.Context, c *cluster) (float64, error) { return c.cut(ctx) }},
			job{groupSplit, rtt, o.splits, groupOf, asIs, func(ctx context.Context, c *cluster) (float64, error) { return c.split(ctx) }})
	}
	return dropEmpty(jobs)
}

// failing are the jobs that lose sites, shared out among the clusters.
func (o options) failing() (jobs []job) {
	for i := range o.clusters {
		jobs = append(jobs, job{
			siteLost, o.rtts[len(o.rtts)-1], (o.failovers + i) / o.clusters, 1, aggressive,
			func(ctx context.Context, c *cluster) (float64, error) { return c.failover(ctx) },
		})
	}
	return dropEmpty(jobs)
}

func dropEmpty(jobs []job) (rest []job) {
	for _, j := range jobs {
		if j.times > 0 {
			rest = append(rest, j)
		}
	}
	return rest
}

// aggressive is the profile that moves after seconds, with the shortest pause between failovers that there may be: this is not an incident.
func aggressive(config map[string]any) {
	config["failover"] = map[string]any{"profile": "aggressive", "minInterval": "10s"}
}

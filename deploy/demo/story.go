package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// Sites of the demo.
const (
	primary = "primary"
	drSite  = "dr-site"
	witness = "witness"
)

// nodes: two in each site, one of them a member of the kvdb, and the witness.
var nodes = []lab.NodeSpec{
	{Name: "p1", Site: primary, Member: true}, {Name: "p2", Site: primary},
	{Name: "d1", Site: drSite, Member: true}, {Name: "d2", Site: drSite},
	{Name: "w1", Site: witness, Member: true, Witness: true},
}

const (
	volumeName = "orders"
	volumeSize = "2Gi"
)

// place is a site where the application can run, and the node there with a replica of its volume.
type place struct{ site, node string }

// story is one run of the demo.
type story struct {
	c    *lab.Cluster
	w    workload
	kvdb string
	out  io.Writer
	load time.Duration // how long the clients write before the site is killed

	failovers int // sites that are lost one after the other; 0: the demo's story
	moves     int // moves by plan under the application, instead of losing sites

	began time.Time
	place [2]place
	at    int             // in place, where the application runs
	lost  int             // over all checks
	total int             // confirmed transactions, by the last check
	rto   []time.Duration // of each loss, from the kill to the first read on the other site
	held  []time.Duration // of each move, how long requests waited
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.out, "[%6.1fs] %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// tell runs the whole story. An error means that it could not be told to its end, or that something of it is not true.
func (s *story) tell(ctx context.Context) error {
	s.began = time.Now()
	chapters := []func(context.Context) error{s.found, s.work, s.disaster, s.homecoming, s.end}
	switch {
	case s.failovers > 0:
		chapters = []func(context.Context) error{s.found, s.work, s.loseAgain, s.end}
	case s.moves > 0:
		chapters = []func(context.Context) error{s.found, s.work, s.moveAgain, s.end}
	}
	for _, chapter := range chapters {
		if err := chapter(ctx); err != nil {
			return err
		}
		if err := s.c.Died(); err != nil {
			return err
		}
	}
	if s.lost > 0 {
		return fmt.Errorf("%d confirmed transactions are lost or damaged", s.lost)
	}
	return nil
}

// home is the node where the application runs.
func (s *story) home() *lab.Node { return s.c.Node(s.place[s.at].node) }

// site is where the application runs.
func (s *story) site() string { return s.place[s.at].site }

// found starts all sites and makes the volume.
func (s *story) found(ctx context.Context) error {
	s.place = [2]place{{primary, "p1"}, {drSite, "d1"}}
	if err := s.c.Prepare(ctx); err != nil {
		return err
	}
	for _, site := range []string{primary, drSite, witness} {
		if err := s.c.Start(site); err != nil {
			return err
		}
	}
	if err := s.c.Ready(ctx, time.Minute); err != nil {
		return err
	}
	s.say("two sites (%s: p1 p2, %s: d1 d2) and a witness run as %d processes; kvdb: %s", primary, drSite, len(s.c.Processes("")), s.kvdb)
	var err error
	if err := lab.Until(ctx, "the volume is created", 30*time.Second, 500*time.Millisecond, func() (bool, error) {
		_, err = s.c.Ctl(ctx, s.home(), "volume", "create", volumeName, "--size", volumeSize, "--replicas", "2")
		return err == nil, err // nodes and pools register within the first seconds
	}); err != nil {
		return err
	}
	v, err := s.c.Inspect(ctx, s.home(), volumeName)
	if err != nil {
		return err
	}
	for _, r := range v.Volume.Replicas {
		for i := range s.place {
			if s.place[i].site == r.Domain {
				s.place[i].node = r.Node
			}
		}
		s.say("volume %s, %s: replica on %s (%s)", volumeName, volumeSize, r.Node, r.Domain)
	}
	return nil
}

// work attaches the volume at home and lets the application write.
func (s *story) work(ctx context.Context) error {
	if err := s.bring(ctx, true); err != nil {
		return err
	}
	if err := s.w.write(ctx); err != nil {
		return err
	}
	if err := s.sleep(ctx, s.load); err != nil {
		return err
	}
	if s.w.confirmed() == 0 {
		return errors.New("nothing was confirmed: the load does not run")
	}
	return nil
}

// bring attaches the volume and opens the application on it.
func (s *story) bring(ctx context.Context, first bool) error {
	path, err := s.c.Attach(ctx, s.home(), volumeName)
	if err != nil {
		return err
	}
	if err := s.w.open(ctx, s.site(), path, first); err != nil {
		return err
	}
	s.say("%s: %s is attached, the application runs on it", s.site(), path)
	return nil
}

// take closes the application and detaches the volume, by plan.
func (s *story) take(ctx context.Context) error {
	if err := s.w.close(ctx); err != nil {
		return err
	}
	_, err := s.c.Ctl(ctx, s.home(), "host", "detach", volumeName)
	return err
}

// disaster kills the site where the application runs, in the middle of the load. Nobody does anything: the volume goes on at the
// other site by itself, and the application is started there.
func (s *story) disaster(ctx context.Context) error {
	before, dead := s.w.confirmed(), s.site()
	killed := time.Now()
	if err := errors.Join(s.w.kill(), s.c.Kill(dead)); err != nil {
		return err
	}
	s.say("SIGKILL to every process of %s, after %d confirmed transactions", dead, before)
	s.at = 1 - s.at
	path, err := s.served(ctx)
	if err != nil {
		return err
	}
	if err := s.w.probe(ctx, path); err != nil {
		return err
	}
	s.rto = append(s.rto, time.Since(killed))
	s.say("%s: it took over by itself, %s is attached and answers", s.site(), path)

	if err := s.w.mourn(ctx, s.c.SiteDir(dead)); err != nil {
		return err
	}
	if err := s.w.open(ctx, s.site(), path, false); err != nil {
		return err
	}
	s.say("%s: the application runs again, %.1f s after the kill", s.site(), time.Since(killed).Seconds())
	return s.check(ctx, "after the loss of "+dead)
}

// served waits until the volume is served at home, and returns what a consumer opens.
func (s *story) served(ctx context.Context) (path string, err error) {
	err = lab.Until(ctx, "the volume goes on at "+s.site(), 2*time.Minute, 20*time.Millisecond, func() (bool, error) {
		out, err := s.c.Ctl(ctx, s.home(), "--timeout", "5s", "volume", "inspect", volumeName, "-o", "json")
		if err != nil {
			return false, err
		}
		var v struct {
			Volume struct {
				Phase      string `json:"phase"`
				Attachment struct {
					Node string `json:"node"`
					Path string `json:"path"`
				} `json:"attachment"`
			} `json:"volume"`
		}
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			return false, lab.Final(fmt.Errorf("volume inspect printed %.200q: %w", out, err))
		}
		path = v.Volume.Attachment.Path
		return v.Volume.Attachment.Node == s.home().Name && v.Volume.Phase == "PHASE_ACTIVE" && path != "", nil
	})
	return path, err
}

// homecoming brings the dead site back while the application writes at the other, and moves it home by plan.
func (s *story) homecoming(ctx context.Context) error {
	if err := s.rejoin(ctx); err != nil {
		return err
	}
	if err := s.w.stop(); err != nil {
		return err
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	s.at = 1 - s.at
	if err := s.bring(ctx, false); err != nil {
		return err
	}
	return s.check(ctx, "back on "+s.site())
}

// rejoin brings the dead site back while the application writes.
func (s *story) rejoin(ctx context.Context) error {
	if err := s.w.write(ctx); err != nil {
		return err
	}
	if err := s.sleep(ctx, s.load/4); err != nil { // what the returning replica lacks
		return err
	}
	dead := s.place[1-s.at].site
	if err := s.c.Start(dead); err != nil {
		return err
	}
	s.say("%s returns; it is activated and resynced while the application writes", dead)
	begin := time.Now()
	if err := s.c.CtlShown(ctx, indent(s.out), s.home(), "--timeout", "2m", "cluster", "domains", "activate", "--name", dead, "--reason", "power is back", "--wait"); err != nil {
		return err
	}
	s.say("%s is ACTIVE and in sync, after %.1f s", dead, time.Since(begin).Seconds())
	return nil
}

// end takes everything down by plan and compares the two replicas byte by byte.
func (s *story) end(ctx context.Context) error {
	v, err := s.c.Inspect(ctx, s.home(), volumeName)
	if err != nil {
		return err
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	s.say("%s: the volume is detached", s.site())
	if err := s.c.Shutdown(); err != nil {
		return err
	}
	s.say("every daemon has ended in order")
	compared, err := s.c.CompareReplicas(v)
	if err != nil {
		return err
	}
	s.say("both replicas are identical, %d MiB compared", compared>>20)
	return nil
}

// check compares the ledger with what the application has.
func (s *story) check(ctx context.Context, when string) error {
	c, err := s.w.check(ctx)
	if err != nil {
		return err
	}
	s.total = c.confirmed
	s.lost += len(c.lost) + len(c.damaged)
	s.say("%s: %v", when, c)
	if !c.ok() {
		return fmt.Errorf("%s: %v", when, c)
	}
	return nil
}

// sleep lets the clients write for a while.
func (s *story) sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return s.c.Died()
	}
}

// summary prints the last lines, for machines.
func (s *story) summary() {
	fmt.Fprintf(s.out, "confirmed transactions: %d\nlost: %d\n", s.total, s.lost)
	if len(s.rto) == 1 {
		fmt.Fprintf(s.out, "storage RTO: %.1f s\n", s.rto[0].Seconds())
	} else if len(s.rto) > 1 {
		fmt.Fprintf(s.out, "storage RTO of %d losses: %s\n", len(s.rto), spread(s.rto))
	}
	if len(s.held) > 0 {
		fmt.Fprintf(s.out, "requests held by %d moves: %s\n", len(s.held), spread(s.held))
	}
}

// spread tells the least, the middle and the most of all.
func spread(all []time.Duration) string {
	all = slices.Sorted(slices.Values(all))
	return fmt.Sprintf("least %.2f s, median %.2f s, most %.2f s", all[0].Seconds(), all[(len(all)-1)/2].Seconds(), all[len(all)-1].Seconds())
}

// indent returns a writer that puts lines a little to the right.
func indent(w io.Writer) io.Writer { return &indenter{w: w, atStart: true} }

type indenter struct {
	w       io.Writer
	atStart bool
}

func (i *indenter) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+64)
	for _, b := range p {
		if i.atStart {
			out = append(out, "          "...)
		}
		out = append(out, b)
		i.atStart = b == '\n'
	}
	if _, err := i.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

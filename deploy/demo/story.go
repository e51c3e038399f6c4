package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// story is one run of the demo.
type story struct {
	c    *lab.Cluster
	w    workload
	kvdb string
	out  io.Writer
	load time.Duration // how long the clients write before the site is killed

	began time.Time
	lost  int           // over all checks
	total int           // confirmed transactions, by the last check
	rto   time.Duration // from the kill to the first read on the other site
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.out, "[%6.1fs] %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// tell runs the whole story. An error means that it could not be told to its end, or that something of it is not true.
func (s *story) tell(ctx context.Context) error {
	s.began = time.Now()
	for _, chapter := range []func(context.Context) error{s.found, s.work, s.disaster, s.homecoming, s.end} {
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

// home and away are the nodes that the operator talks to.
func (s *story) home() *lab.Node { return s.c.Node("p1") }
func (s *story) away() *lab.Node { return s.c.Node("d1") }

// found starts all sites and makes the volume.
func (s *story) found(ctx context.Context) error {
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
		s.say("volume %s, %s: replica on %s (%s)", volumeName, volumeSize, r.Node, r.Domain)
	}
	return nil
}

// work attaches the volume at home and lets the application write.
func (s *story) work(ctx context.Context) error {
	if err := s.bring(ctx, primary, s.home(), true); err != nil {
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

// bring attaches the volume on n and opens the application on it.
func (s *story) bring(ctx context.Context, site string, n *lab.Node, first bool) error {
	path, err := s.c.Attach(ctx, n, volumeName)
	if err != nil {
		return err
	}
	if err := s.w.open(ctx, site, path, first); err != nil {
		return err
	}
	s.say("%s: %s is attached, the application runs on it", site, path)
	return nil
}

// take closes the application and detaches the volume, by plan.
func (s *story) take(ctx context.Context, n *lab.Node) error {
	if err := s.w.close(ctx); err != nil {
		return err
	}
	_, err := s.c.Ctl(ctx, n, "host", "detach", volumeName)
	return err
}

// disaster kills the primary site in the middle of the load and goes on at the other.
func (s *story) disaster(ctx context.Context) error {
	before := s.w.confirmed()
	killed := time.Now()
	if err := errors.Join(s.w.kill(), s.c.Kill(primary)); err != nil {
		return err
	}
	s.say("SIGKILL to every process of %s, after %d confirmed transactions", primary, before)

	if err := s.deactivate(ctx); err != nil {
		return err
	}
	s.say("%s is deactivated", primary)
	path, err := s.c.Attach(ctx, s.away(), volumeName)
	if err != nil {
		return err
	}
	if err := s.w.probe(ctx, path); err != nil {
		return err
	}
	s.rto = time.Since(killed)
	s.say("%s: %s is attached and answers", drSite, path)

	if err := s.w.mourn(ctx, s.c.SiteDir(primary)); err != nil {
		return err
	}
	if err := s.w.open(ctx, drSite, path, false); err != nil {
		return err
	}
	s.say("%s: the application runs again, %.1f s after the kill", drSite, time.Since(killed).Seconds())
	return s.check(ctx, "after the loss of "+primary)
}

// deactivate tells the survivors that the site is gone. Right after the kill the kvdb may be choosing a new leader: an
// operator would ask again.
func (s *story) deactivate(ctx context.Context) error {
	return lab.Until(ctx, "deactivate "+primary, 60*time.Second, 200*time.Millisecond, func() (bool, error) {
		_, err := s.c.Ctl(ctx, s.away(), "--timeout", "20s", "cluster", "domains", "deactivate", "--name", primary, "--peer-lost", "--reason", "site is dark")
		return err == nil, err
	})
}

// homecoming brings the dead site back while the application writes at the other, and moves it home by plan.
func (s *story) homecoming(ctx context.Context) error {
	if err := s.w.write(ctx); err != nil {
		return err
	}
	if err := s.sleep(ctx, s.load/4); err != nil { // what the returning replica lacks
		return err
	}
	if err := s.c.Start(primary); err != nil {
		return err
	}
	s.say("%s returns; it is activated and resynced while the application writes", primary)
	begin := time.Now()
	if err := s.c.CtlShown(ctx, indent(s.out), s.away(), "--timeout", "2m", "cluster", "domains", "activate", "--name", primary, "--reason", "power is back", "--wait"); err != nil {
		return err
	}
	s.say("%s is ACTIVE and in sync, after %.1f s", primary, time.Since(begin).Seconds())
	if err := s.w.stop(); err != nil {
		return err
	}
	if err := s.take(ctx, s.away()); err != nil {
		return err
	}
	if err := s.bring(ctx, primary, s.home(), false); err != nil {
		return err
	}
	return s.check(ctx, "back on "+primary)
}

// end takes everything down by plan and compares the two replicas byte by byte.
func (s *story) end(ctx context.Context) error {
	v, err := s.c.Inspect(ctx, s.home(), volumeName)
	if err != nil {
		return err
	}
	if err := s.take(ctx, s.home()); err != nil {
		return err
	}
	s.say("%s: the volume is detached", primary)
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
	fmt.Fprintf(s.out, "confirmed transactions: %d\nlost: %d\nstorage RTO: %.1f s\n", s.total, s.lost, s.rto.Seconds())
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

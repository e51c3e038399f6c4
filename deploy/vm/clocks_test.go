//go:build vm

package vm

import (
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// TestClocks sets the wall clock of the machine that serves a volume, of the one with the other replica and of both, forward by a day
// and back by most of an hour, as a time server that is wrong and then right does it: nobody is evicted, nothing fails over,
// and a detach and an attach with clocks a day apart work as always (F25 of protocol.md 11). Further back than an hour, a certificate
// that was just issued is not valid yet.
func TestClocks(t *testing.T) {
	p := newDiskTest(t, false)
	p.inSync(t, rawVolume, nodes...)
	epoch := p.epoch(t)
	for _, jump := range []struct {
		by    string
		nodes []string
	}{
		{"86400", []string{p.home}},
		{"86400", []string{p.away}},
		{"-86400", []string{p.home}},
		{"-89400", []string{p.away}},
		{"-3000", []string{p.home}},
		{"90000", []string{p.home, p.away}},
	} {
		for _, n := range jump.nodes {
			if _, err := p.machines[n].Run(t.Context(), "date", "--set", jump.by+" seconds"); err != nil {
				t.Fatal(err)
			}
		}
		// Longer than what is believed of a peer that is silent, and than a lease.
		for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
			p.confirmed(t, 20)
		}
		if now := p.epoch(t); now != epoch {
			t.Errorf("after a jump by %s s on %v the volume is in epoch %d, it was in %d", jump.by, jump.nodes, now, epoch)
		}
	}
	p.inSync(t, rawVolume, nodes...)

	if _, err := p.machines[p.away].Run(t.Context(), "date", "--set", "-86400 seconds"); err != nil {
		t.Fatal(err)
	}
	p.ask(t, order.Request{Op: order.Quiet})
	if _, err := p.ctl(t, p.home, "host", "detach", rawVolume); err != nil {
		t.Fatal(err)
	}
	compared := p.identical(t)
	line := p.order(t, p.away, order.Request{Op: order.Read, Path: p.attach(t, p.away, rawVolume), Seed: p.seed})
	if _, err := p.blocks.Check(line.Versions); err != nil {
		t.Errorf("%v\n%s", err, line.Out)
	}
	confirmed, _, _ := p.blocks.Confirms()
	say("clocks: by up to a day, forward and back, on either machine and on both: no eviction; %d writes confirmed, all there, %d bytes identical; %v; SEED=%d",
		confirmed, compared, since(p.began), p.seed)
}

// epoch is that of the volume's configuration.
func (p *diskTest) epoch(t *testing.T) int64 {
	t.Helper()
	v, err := p.Inspect(t.Context(), p.Node("w1"), rawVolume)
	if err != nil {
		t.Fatal(err)
	}
	return v.Volume.Epoch
}

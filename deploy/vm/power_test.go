//go:build vm

package vm

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// power is a cluster whose power is cut again and again, while two volumes are written on one node: one as a device, one as a
// file system.
type power struct {
	*cluster
	rng        *rand.Rand
	seed       uint64
	blocks     *Ledger
	files      *FileLedger
	home, away string // where the volumes are attached; the other one
	synced     bool   // both replicas were in sync when the writers had their last start
	cuts       int    // so far
}

// The volumes.
const (
	rawVolume, treeVolume = "raw", "tree"
	mountPoint            = "/mnt"
)

// cut is one power cut.
type cut struct {
	victims []string
	writes  int // confirmed before it
	kept    int // percent of what was not flushed
}

// TestPowerXFS cuts the power of one site or of both, with the pools on XFS.
func TestPowerXFS(t *testing.T) { cutPower(t, "xfs", *roundsFlag) }

// TestPowerExt4 is the same on ext4.
func TestPowerExt4(t *testing.T) { cutPower(t, "ext4", (*roundsFlag+3)/4) }

func cutPower(t *testing.T, fs string, rounds int) {
	seed := seeded()
	p := &power{
		rng: rand.New(rand.NewPCG(seed, uint64(len(fs)))), seed: seed,
		blocks: NewLedger(order.Places), files: NewFileLedger(), home: "a1", away: "b1",
	}
	began := time.Now()
	p.cluster = found(t, fs, false, func(line order.Line) {
		if line.Writer == order.Files {
			p.files.Note(line)
		} else {
			p.blocks.Note(line)
		}
	})
	say("%s: two machines with %s and a witness up in %v; seed %d", fs, filepath.Base(p.machines[p.home].Kernel), since(began), seed)
	p.volumes(t)
	for i := range rounds {
		p.round(t, i)
	}
	confirmed, _, _ := p.blocks.Confirms()
	version, _ := p.files.Top()
	say("%s: %d rounds with %d power cuts, each checked, %d writes confirmed, %d files replaced; nothing that was flushed is lost; %v; SEED=%d", fs, rounds, p.cuts, confirmed, version, since(began), seed)
}

// plan chooses a cut.
func (p *power) plan() cut {
	both, home, away := []string{p.home, p.away}, []string{p.home}, []string{p.away}
	x := cut{writes: 1 + p.rng.IntN(150)}
	if p.synced {
		x.victims = [][]string{both, both, home, away}[p.rng.IntN(4)]
	} else { // the other site alone may be all that is in sync
		x.victims = [][]string{both, home}[p.rng.IntN(2)]
	}
	x.kept = []int{0, 0, 100, 50, 1 + p.rng.IntN(99)}[p.rng.IntN(5)]
	return x
}

// volumes makes the volumes and starts to write.
func (p *power) volumes(t *testing.T) {
	t.Helper()
	for _, v := range [][2]string{{rawVolume, "32Mi"}, {treeVolume, "48Mi"}} {
		if _, err := p.ctl(t, p.home, "volume", "create", v[0], "--size", v[1], "--replicas", "2"); err != nil {
			t.Fatal(err)
		}
	}
	raw, tree := p.attach(t, p.home, rawVolume), p.attach(t, p.home, treeVolume)
	if err := makeFS(t.Context(), p.machines[p.home], "xfs", tree); err != nil {
		t.Fatal(err)
	}
	p.ask(t, order.Request{Op: order.Mount, Device: tree, Path: mountPoint, FS: "xfs"})
	p.write(t, raw)
	p.synced = true
}

// ask orders something of the machine at home.
func (p *power) ask(t *testing.T, q order.Request) order.Line {
	t.Helper()
	q.Seed = p.seed
	return p.order(t, p.home, q)
}

// write starts both writers.
func (p *power) write(t *testing.T, raw string) {
	t.Helper()
	version, _ := p.files.Top()
	p.ask(t, order.Request{Op: order.Blocks, Path: raw, After: p.blocks.Top()})
	p.ask(t, order.Request{Op: order.Files, Path: mountPoint, After: version})
}

// confirmed waits until n more writes are confirmed.
func (p *power) confirmed(t *testing.T, n int) {
	t.Helper()
	first, _, _ := p.blocks.Confirms()
	limit := time.After(waitLimit)
	for {
		now, failed, more := p.blocks.Confirms()
		if failed != "" {
			t.Fatalf("the volume failed: %s", failed)
		}
		if now-first >= n {
			return
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("%d of %d writes are confirmed after %v", now-first, n, waitLimit)
		}
	}
}

// round cuts the power and checks. In one round of four the writers go on before that, and a second cut hits a cluster that recovers.
func (p *power) round(t *testing.T, i int) {
	t.Helper()
	if p.rng.IntN(4) == 0 {
		p.strike(t, i, p.plan(), false)
	}
	p.strike(t, i, p.plan(), true)
}

// strike cuts the power and brings it back. Then it checks, or lets the writers go on.
func (p *power) strike(t *testing.T, i int, x cut, check bool) {
	t.Helper()
	p.cuts++
	p.confirmed(t, x.writes)
	total, _, _ := p.blocks.Confirms()
	coordinator := x.victims[0] == p.home
	if coordinator {
		p.blocks.Cutting()
		p.files.Cutting()
	}
	at := time.Now()
	p.cutPower(t, Loss{Kept: x.kept, Rand: p.rng}, x.victims...)
	said := ""
	defer func() {
		if t.Failed() {
			said += fmt.Sprintf("; FAILED, SEED=%d", p.seed)
		}
		say("%s round %d: %v lost power after %d writes (%d in all), %d %% of the unflushed kept%s", p.fs, i+1, x.victims, x.writes, total, x.kept, said)
	}()
	p.on(t, x.victims...)
	said = fmt.Sprintf("; up after %v", since(at))
	if coordinator {
		alone := len(x.victims) == 1 && !p.keptBy(t, p.away)
		if alone {
			said += fmt.Sprintf(", %s was not in sync", p.away)
		}
		p.blocks.Ended(len(x.victims) == 2 || alone)
		p.files.Ended()
	}
	var raw, tree string
	switch {
	case coordinator:
		raw, tree = p.attach(t, p.home, rawVolume), p.attach(t, p.home, treeVolume)
		said += fmt.Sprintf(", serving after %v", since(at))
		p.ask(t, order.Request{Op: order.Mount, Device: tree, Path: mountPoint, FS: "xfs"}) // replays its log
		if !check {
			p.write(t, raw)
		}
	case check:
		p.confirmed(t, 20) // it goes on
		p.ask(t, order.Request{Op: order.Quiet})
		raw, tree = p.attach(t, p.home, rawVolume), p.attach(t, p.home, treeVolume)
	}
	p.synced = false
	if check {
		said += p.check(t, raw, tree, at)
		p.survivors(t, x.victims)
		p.next(t)
	}
}

// keptBy tells whether the replica on a node is in sync, while nobody coordinates the volume that is written as a device: a
// machine that is slow may have been evicted before the cut, and then the other one was all that had the newest.
func (p *power) keptBy(t *testing.T, node string) (is bool) {
	t.Helper()
	p.until(t, "the volume can be looked at", func() (bool, error) {
		rs, err := p.replicas(t, rawVolume)
		is = rs[node].InSync
		return err == nil, err
	})
	return is
}

// check reads everything, as soon as it can be read, waits until the replicas are in sync, and compares them with nobody there.
func (p *power) check(t *testing.T, raw, tree string, at time.Time) string {
	t.Helper()
	line := p.ask(t, order.Request{Op: order.Read, Path: raw})
	open, err := p.blocks.Check(line.Versions)
	if err != nil {
		t.Fatalf("%v\n%s", err, line.Out)
	}
	if err := p.files.Check(p.ask(t, order.Request{Op: order.List, Path: mountPoint}).Versions); err != nil {
		t.Fatal(err)
	}
	p.ask(t, order.Request{Op: order.Umount, Path: mountPoint})
	if err := checkFS(t.Context(), p.machines[p.home], tree, "xfs"); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{rawVolume, treeVolume} {
		p.inSync(t, v, nodes...)
	}
	synced := since(at)
	for _, v := range []string{rawVolume, treeVolume} {
		if _, err := p.ctl(t, p.home, "host", "detach", v); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf(", in sync after %v, %d places were open, %d MiB identical", synced, open, p.identical(t)>>20)
}

// survivors checks the file systems of the pools that did not lose power: those of the victims were checked when they came back.
func (p *power) survivors(t *testing.T, victims []string) {
	t.Helper()
	for _, n := range nodes {
		if slices.Contains(victims, n) {
			continue
		}
		p.order(t, n, order.Request{Op: order.Stop})
		p.until(t, "the pool of "+n+" is unmounted", func() (bool, error) { // the kernel lets go of a ring's files after its process
			_, err := p.machines[n].Ask(t.Context(), order.Request{Op: order.Umount, Path: poolPath})
			return err == nil, err
		})
		if err := p.mountPool(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		p.order(t, n, daemon)
		p.until(t, n+" answers", func() (bool, error) {
			_, err := p.ctl(t, n, "cluster", "list")
			return err == nil, err
		})
		p.online(t, n)
	}
}

// next attaches the volumes on a node, the same or the other, and writes on.
func (p *power) next(t *testing.T) {
	t.Helper()
	if p.rng.IntN(2) == 0 {
		p.home, p.away = p.away, p.home
	}
	raw, tree := p.attach(t, p.home, rawVolume), p.attach(t, p.home, treeVolume)
	p.ask(t, order.Request{Op: order.Mount, Device: tree, Path: mountPoint, FS: "xfs"})
	p.write(t, raw)
	p.synced = true
}

// since is how long ago something was, in round figures.
func since(at time.Time) time.Duration { return time.Since(at).Round(100 * time.Millisecond) }

// say prints a line, now: a run takes minutes.
func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// seeded returns the seed of the run.
func seeded() uint64 {
	if *seedFlag == 0 {
		*seedFlag = rand.Uint64N(1 << 32)
	}
	return *seedFlag
}

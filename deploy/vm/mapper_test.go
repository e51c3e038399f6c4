//go:build vm

package vm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// mapping is the name of the pool's disk in the guest's device mapper.
const mapping = "pool"

// Targets of the device mapper, for the whole of the pool's disk.
const (
	healthy = "linear " + poolDisk + " 0"
	delayed = "delay " + poolDisk + " 0 60000"                   // each request takes a minute
	flakey  = "flakey " + poolDisk + " 0 0 86400 1 error_writes" // EIO of every write and of every fsync
	dead    = "error"                                            // EIO of everything
	sectors = poolSize / sector
)

// TestMapperTargets holds each target to what it is said to do.
func TestMapperTargets(t *testing.T) {
	c, _ := hardware(t, "ext4", true, nil)
	m := c.machines["a1"]
	if err := m.Boot(t.Context(), &undo); err != nil {
		t.Fatal(err)
	}
	if err := c.mapPool(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := makeFS(t.Context(), m, c.fs, c.poolDevice()); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		target        string
		reads, writes bool
	}{{flakey, true, false}, {dead, false, false}, {healthy, true, true}} {
		c.target(t, "a1", x.target)
		if err := checkFS(t.Context(), m, c.poolDevice(), c.fs); (err == nil) != x.reads {
			t.Errorf("%s: the file system was read: %v", x.target, err)
		}
		if err := makeFS(t.Context(), m, c.fs, c.poolDevice()); (err == nil) != x.writes {
			t.Errorf("%s: a file system was made: %v", x.target, err)
		}
	}
	c.target(t, "a1", delayed)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := checkFS(ctx, m, c.poolDevice(), c.fs); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: the file system was read: %v", delayed, err)
	}
	c.target(t, "a1", healthy)
	if err := checkFS(t.Context(), m, c.poolDevice(), c.fs); err != nil {
		t.Error(err)
	}
}

// TestMapper breaks the pools' disks as TestDisk does, but in the kernel of the guest: by dm-delay, and by dm-flakey that fails every
// write and fsync.
func TestMapper(t *testing.T) {
	p := newDiskTest(t, true)
	p.hangs(t, "takes a minute for each request", func(t *testing.T, n string) func() {
		p.target(t, n, delayed)
		return func() { p.target(t, n, healthy) }
	})
	p.fails(t, "fails writes and fsync", p.broken(flakey))
}

// TestMapperDead lets the disk fail everything at once, by dm-error.
func TestMapperDead(t *testing.T) {
	p := newDiskTest(t, true)
	p.fails(t, "fails everything", p.broken(dead))
}

// broken is the fault of a target. A machine comes back with a healthy one.
func (c *cluster) broken(target string) fault {
	return func(t *testing.T, n string) func() {
		c.target(t, n, target)
		return func() {}
	}
}

// mapPool makes the mapping of the pool's disk to itself.
func (c *cluster) mapPool(ctx context.Context, m *Machine) error {
	_, err := m.Run(ctx, "dmsetup", "create", mapping, "--table", table(healthy))
	return err
}

// table is that of a mapping to a target.
func table(target string) string { return fmt.Sprintf("0 %d %s", sectors, target) }

// target puts the pool of a node on another target. What the one before it holds back is let go.
func (c *cluster) target(t *testing.T, node, target string) {
	t.Helper()
	for _, argv := range [][]string{
		{"dmsetup", "load", mapping, "--table", table(target)},
		{"dmsetup", "suspend", "--noflush", "--nolockfs", mapping},
		{"dmsetup", "resume", mapping},
	} {
		if _, err := c.machines[node].Run(t.Context(), argv...); err != nil {
			t.Fatal(err)
		}
	}
}

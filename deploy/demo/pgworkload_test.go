package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestPGWorkloadOnLoopDevice takes the application through the demo's steps on a plain loop device.
func TestPGWorkloadOnLoopDevice(t *testing.T) {
	if why := canMount(t.Context()); why != "" {
		t.Skip(why)
	}
	lab.AdoptOrphans()
	work := t.TempDir()
	if err := os.Chmod(filepath.Dir(work), 0o755); err != nil { // user postgres has to get through
		t.Fatal(err)
	}
	site := filepath.Join(work, "site")
	for _, dir := range []string{site, filepath.Join(work, "log")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	img := filepath.Join(site, "img")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 512<<20); err != nil {
		t.Fatal(err)
	}
	attach := func() string {
		t.Helper()
		out, err := lab.Run(t.Context(), "losetup", "--find", "--show", img)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	var u lab.Undo
	t.Cleanup(func() {
		if err := u.Run(); err != nil {
			t.Error(err)
		}
		if left, err := loops(work); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		if left, err := mounts(work); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	w, err := newPGWorkload(work, nil, &u)
	if err != nil {
		t.Fatal(err)
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ctx := t.Context()
	dev := attach()
	must("open", w.open(ctx, "a", dev, true))
	must("write", w.write(ctx))
	must("load", lab.Until(ctx, "50 transactions", time.Minute, 10*time.Millisecond, func() (bool, error) { return w.confirmed() >= 50, nil }))
	must("kill", w.kill())
	must("mourn", w.mourn(ctx, site))
	if left, err := loops(site); err != nil || len(left) > 0 {
		t.Errorf("mourning left %v, %v", left, err)
	}

	dev = attach()
	must("probe", w.probe(ctx, dev))
	must("open again", w.open(ctx, "b", dev, false))
	c, err := w.check(ctx)
	must("check", err)
	if !c.ok() || c.confirmed < 50 || c.extra > w.clients {
		t.Errorf("after the kill: %v", c)
	}
	must("write again", w.write(ctx))
	must("stop", w.stop())
	must("close", w.close(ctx))
	if _, err := lab.Run(context.WithoutCancel(ctx), "losetup", "-d", dev); err != nil {
		t.Error(err)
	}
}

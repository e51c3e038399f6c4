//go:build kube

package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// build makes the programs once, in bin/kube of the tree at top.
var build = sync.OnceValues(func() (top string, err error) {
	here, err := os.Getwd()
	if err != nil {
		return "", err
	}
	top = filepath.Join(here, "..", "..")
	bin := filepath.Join(top, "bin", "kube")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	return top, Build(context.Background(), top, bin)
})

// programs are the tree and the programs built of it.
func programs(t *testing.T) (top, bin string) {
	t.Helper()
	began := time.Now()
	top, err := build()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("built after %v", time.Since(began).Round(100*time.Millisecond))
	return top, filepath.Join(top, "bin", "kube")
}

// workDir is a directory on a disk, and what is undone at the end.
func workDir(t *testing.T) (string, *lab.Undo) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "tandem-kube-")
	if err != nil {
		t.Fatal(err)
	}
	undo := &lab.Undo{}
	undo.Add(dir, func() error { return os.RemoveAll(dir) })
	t.Cleanup(func() {
		if err := undo.Run(); err != nil {
			t.Error(err)
		}
	})
	return dir, undo
}

// laps logs what was done, and how long it took.
func laps(t *testing.T) func(what string) {
	began := time.Now()
	return func(what string) {
		t.Helper()
		t.Logf("%s after %v", what, time.Since(began).Round(100*time.Millisecond))
		began = time.Now()
	}
}

// cluster makes a cluster that is Ready.
func cluster(t *testing.T, w *World, name string, nodes ...string) *Cluster {
	t.Helper()
	c, err := w.NewCluster(t.Context(), name, nodes...)
	if err != nil {
		if c != nil {
			for _, n := range c.nodes {
				t.Log(lab.Tail(filepath.Join(n.dir, "log", "init.log"), 20))
			}
		}
		t.Fatal(err)
	}
	return c
}

// TestCluster makes a cluster of two nodes, runs a pod on each, kills a node and starts it again, and leaves nothing behind.
func TestCluster(t *testing.T) {
	_, bin := programs(t)
	dir, undo := workDir(t)
	lap := laps(t)
	w, err := NewWorld(t.Context(), bin, dir, undo)
	if err != nil {
		t.Fatal(err)
	}
	c := cluster(t, w, "one", "one-a", "one-b")
	lap("two nodes Ready")
	for _, n := range c.nodes {
		pod := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"on-%[1]s"},"spec":{"nodeName":%[1]q,"terminationGracePeriodSeconds":0,
			"containers":[{"name":"c","image":%[2]q,"imagePullPolicy":"Never","command":["sleep","100000"]}]}}`, n.Name, ShellImage)
		if _, err := c.Kubectl(t.Context(), pod, "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Kubectl(t.Context(), "", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Kubectl(t.Context(), "", "exec", "on-one-b", "--", "echo", "hello"); err != nil || strings.TrimSpace(out) != "hello" {
		t.Fatalf("%q, %v", out, err)
	}
	lap("a pod on each")
	if err := c.Node("one-b").Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Node("one-b").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context(), "one-b"); err != nil {
		t.Fatal(err)
	}
	lap("a node killed and started")
}

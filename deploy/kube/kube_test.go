//go:build kube

package kube

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestCluster makes a cluster of two nodes, runs a pod on each, kills a node and starts it again, and leaves nothing behind.
func TestCluster(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "tandem-kube-")
	if err != nil {
		t.Fatal(err)
	}
	var undo lab.Undo
	undo.Add(dir, func() error { return os.RemoveAll(dir) })
	t.Cleanup(func() {
		if err := undo.Run(); err != nil {
			t.Error(err)
		}
	})
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(here, "..", "..")
	bin := filepath.Join(top, "bin", "kube")
	began := time.Now()
	lap := func(what string) {
		t.Logf("%s after %v", what, time.Since(began).Round(100*time.Millisecond))
		began = time.Now()
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Build(t.Context(), top, bin); err != nil {
		t.Fatal(err)
	}
	lap("built")
	w, err := NewWorld(t.Context(), bin, dir, &undo)
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.NewCluster(t.Context(), "one", "one-a", "one-b")
	if err != nil {
		for _, n := range c.nodes {
			t.Log(lab.Tail(filepath.Join(n.dir, "log", "init.log"), 20))
		}
		t.Fatal(err)
	}
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

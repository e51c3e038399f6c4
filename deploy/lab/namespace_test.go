package lab

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNamespaceEndsNoThread wants the threads that made networks alive and at home: the end of a thread kills what it started.
func TestNamespaceEndsNoThread(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var threads []int
	for range 20 {
		n, err := newNamespace(func() error { threads = append(threads, unix.Gettid()); return nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range threads {
		if at, err := os.Readlink(fmt.Sprintf("/proc/self/task/%d/ns/net", id)); err != nil || at != home {
			t.Errorf("thread %d is in %q, not in %s: %v", id, at, home, err)
		}
	}
}

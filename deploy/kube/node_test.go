//go:build kube

package kube

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNodeKeepsNoMounts has a file system mounted when a node begins, below the very directory of its files. The node does not have it, so that it ends when it is unmounted.
func TestNodeKeepsNoMounts(t *testing.T) {
	_, bin := programs(t)
	dir, undo := workDir(t)
	foreign := fmt.Sprintf("tandem-foreign-%d", os.Getpid())
	at := filepath.Join(dir, "foreign")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(foreign, at, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	undo.Add(at, func() error {
		if err := unix.Unmount(at, 0); err != nil && err != unix.EINVAL { // not mounted any more
			return err
		}
		return nil
	})
	if own, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !strings.Contains(string(own), foreign) {
		t.Fatalf("the test does not see its own file system, %v", err)
	}
	w, err := NewWorld(t.Context(), bin, dir, undo)
	if err != nil {
		t.Fatal(err)
	}
	c := cluster(t, w, "one", "one-a")
	pod := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"terminationGracePeriodSeconds":0,
		"containers":[{"name":"c","image":%q,"imagePullPolicy":"Never","command":["sleep","100000"]}]}}`, ShellImage)
	if _, err := c.Kubectl(t.Context(), pod, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Kubectl(t.Context(), "", "wait", "--for=condition=Ready", "pod", "p", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	family := descendants(t, c.Node("one-a").proc.PID())
	if len(family) < 10 {
		t.Fatalf("the node has %d processes, it has a control plane and a pod", len(family))
	}
	for _, pid := range family {
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil { // ended meanwhile
			continue
		}
		if strings.Contains(string(mounts), foreign) {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			t.Errorf("process %d (%s) of the node still has a file system that was unmounted", pid, strings.TrimSpace(string(name)))
		}
	}
}

// descendants are a process and all that it has begun, as this machine numbers them.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range tasks {
			children, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			for _, c := range strings.Fields(string(children)) {
				var n int
				if _, err := fmt.Sscan(c, &n); err != nil {
					t.Fatal(err)
				}
				all = append(all, n)
			}
		}
	}
	return all
}

// TestGroupsOfTheKilled removes groups, one in the other, with a process in each that was killed a moment ago; one with a process that lives is not waited for without end.
func TestGroupsOfTheKilled(t *testing.T) {
	name := fmt.Sprintf("tandem-kube-test-%d", os.Getpid())
	t.Cleanup(func() {
		if err := removeGroups(name); err != nil {
			t.Error(err)
		}
	})
	sleeper := func(groups string) *exec.Cmd {
		if err := makeGroups(groups); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sleep", "100000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
		all, err := hierarchies()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range all {
			if filepath.Base(h) == unified {
				continue
			}
			if err := os.WriteFile(filepath.Join(h, groups, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return cmd
	}
	for range 20 {
		outer := sleeper(name)
		inner := sleeper(filepath.Join(name, "inner"))
		for _, cmd := range []*exec.Cmd{outer, inner} {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err := removeGroups(name); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(groupRoot, "memory", name)); !os.IsNotExist(err) {
			t.Fatalf("the group is still there: %v", err)
		}
	}
	lives := sleeper(name)
	err := removeGroup(filepath.Join(groupRoot, "memory", name), time.Now().Add(20*time.Millisecond))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d ", lives.Process.Pid)) {
		t.Errorf("with process %d in the group: %v", lives.Process.Pid, err)
	}
	if err := lives.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// groupRoot is where the hierarchies of control groups are.
const groupRoot = "/sys/fs/cgroup"

// unified is the hierarchy of version 2 beside those of version 1: it has no controllers, and only runc makes groups in it.
const unified = "unified"

func hierarchies() ([]string, error) {
	entries, err := os.ReadDir(groupRoot)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, filepath.Join(groupRoot, e.Name()))
		}
	}
	return all, nil
}

// checkGroups says what is missing.
func checkGroups() error {
	if _, err := os.Stat(filepath.Join(groupRoot, "cgroup.controllers")); err == nil {
		return errors.New("kube: the control groups of this machine are of version 2, which was never tried: boot it with systemd.unified_cgroup_hierarchy=0")
	}
	if _, err := os.Stat(filepath.Join(groupRoot, "memory")); err != nil {
		return fmt.Errorf("kube: no control groups: %w", err)
	}
	return nil
}

// makeGroups makes the root of a node in every hierarchy of version 1. A new group of cpuset has no processors, and takes no process until it has.
func makeGroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if filepath.Base(h) == unified {
			continue
		}
		dir := filepath.Join(h, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(h, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), value, 0o644)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// groupLimit is how long what was killed may take to leave its group: far longer than it does.
const groupLimit = 30 * time.Second

// removeGroups removes it. What ran in it has ended, or is about to.
func removeGroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	deadline := time.Now().Add(groupLimit)
	for _, h := range all {
		errs = append(errs, removeGroup(filepath.Join(h, name), deadline))
	}
	return errors.Join(errs...)
}

// removeGroup removes a group with those in it. A process leaves its group before its end can be seen (pidfd_open(2)), so that each is waited for once.
func removeGroup(dir string, deadline time.Time) error {
	for alone := 0; ; {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := removeGroup(filepath.Join(dir, e.Name()), deadline); err != nil {
					return err
				}
			}
		}
		busy := os.Remove(dir)
		if busy == nil || errors.Is(busy, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(busy, unix.EBUSY) {
			return busy
		}
		found, err := membersEnd(dir, deadline)
		if err != nil {
			return err
		}
		if found {
			alone = 0
		} else if alone++; alone == 3 { // the last one may have gone in between, but not again and again
			return fmt.Errorf("%w, and no process is in it", busy)
		}
	}
}

// membersEnd waits for the end of the processes in a group, and reports whether there were any.
func membersEnd(dir string, deadline time.Time) (found bool, err error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return false, err
	}
	for _, p := range strings.Fields(string(data)) {
		found = true
		pid, err := strconv.Atoi(p)
		if err != nil {
			return true, fmt.Errorf("process in group %s: %w", dir, err)
		}
		if err := processEnd(pid, deadline); err != nil {
			return true, fmt.Errorf("group %s: %w", dir, err)
		}
	}
	return found, nil
}

// processEnd waits for the end of a process.
func processEnd(pid int, deadline time.Time) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(deadline)).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n > 0:
			return nil
		default:
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // its name and its state
			return errors.Join(fmt.Errorf("process %d has not ended within %v: %s", pid, groupLimit, stat), err)
		}
	}
}

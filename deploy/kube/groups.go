package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
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

// removeGroups removes it. What ran in it has ended, or is about to.
func removeGroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		errs = append(errs, removeGroup(filepath.Join(h, name)))
	}
	return errors.Join(errs...)
}

// removeGroup removes a group with those in it.
func removeGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for range 100 { // a process that was killed leaves its group when it is gone
		if err = os.Remove(dir); !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// system is where the programs of Debian are, and what they read.
var system = []string{"/bin", "/etc", "/lib", "/lib64", "/sbin", "/usr/bin", "/usr/lib", "/usr/sbin", "/usr/share", "/opt"}

// kernel is where the kernel shows itself: these are taken with everything below.
var kernel = []string{"/dev", "/proc", "/sys"}

// staging is where the root of the node is put together. Any directory does that every machine has: it is covered in this namespace alone, and not in the new root.
const staging = "/mnt"

// ownRoot gives the mount namespace a root of its own, with the file systems that have these paths, Debian's programs and the kernel's file systems.
// A new namespace has all the mounts of the one that it was made in. What was mounted there by others is not unmounted for it when they do it: a file system that somebody has
// given back would live on in the node, a loop device keep its file, a FUSE server its client. So the rest is let go. The mounts have to be private.
func ownRoot(paths []string) error {
	mounts, err := mountsOf(append(slices.Clone(system), paths...))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if err := unix.Mount(m, filepath.Join(staging, m), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s for the root of the node: %w", m, err)
		}
	}
	for _, m := range kernel {
		if err := unix.Mount(m, filepath.Join(staging, m), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s for the root of the node: %w", m, err)
		}
	}
	if err := os.Chdir(staging); err != nil {
		return err
	}
	// The old root lies on top of the new one then, and goes with all that is in it. The process that waits for this one is taken along.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("root of the node: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the mounts of the machine: %w", err)
	}
	return os.Chdir("/")
}

// mountsOf returns where the file systems of these paths are mounted, and those that they are mounted in, outer ones first. A path that is not there has none.
func mountsOf(paths []string) ([]string, error) {
	found := map[string]bool{"/": true}
	for _, p := range paths {
		at, err := filepath.EvalSymlinks(p)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for at != "/" {
			mounted, err := isMount(at)
			if err != nil {
				return nil, err
			}
			if mounted {
				found[at] = true
			}
			at = filepath.Dir(at)
		}
	}
	all := make([]string, 0, len(found))
	for m := range found {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(a, b) }) // a prefix comes first
	return all, nil
}

// isMount reports whether something is mounted at a path without symbolic links.
func isMount(path string) (bool, error) {
	var of [2]unix.Statx_t
	for i, p := range []string{path, filepath.Dir(path)} {
		if err := unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &of[i]); err != nil {
			return false, fmt.Errorf("statx %s: %w", p, err)
		}
		if of[i].Mask&unix.STATX_MNT_ID == 0 {
			return false, fmt.Errorf("statx %s: this kernel does not tell mounts, Linux 5.8 does", p)
		}
	}
	return of[0].Mnt_id != of[1].Mnt_id, nil
}

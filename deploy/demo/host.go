package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// canMount says in a few words why the database cannot have a file system on a real block device here, or "".
func canMount(ctx context.Context, app string) string {
	if os.Geteuid() != 0 {
		return "not root"
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err != nil {
			return "no " + dev
		}
		f.Close()
	}
	if _, err := lab.Run(ctx, "losetup", "-f"); err != nil {
		return "no free loop device"
	}
	if err := databases[app].missing(); err != nil {
		return err.Error()
	}
	for _, tool := range []string{"/usr/sbin/mkfs.xfs", "/usr/bin/fusermount3"} {
		if _, err := os.Stat(tool); err != nil {
			return "no " + tool
		}
	}
	return ""
}

// mounts returns the mount points at or below dir, the deepest first.
func mounts(dir string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			found = append(found, f[4])
		}
	}
	sort.Slice(found, func(i, j int) bool { return len(found[i]) > len(found[j]) })
	return found, nil
}

// loops returns the loop devices whose backing file is or was below dir.
func loops(dir string) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(data), dir+"/") {
			found = append(found, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	return found, nil
}

// release unmounts everything at or below dir and frees its loop devices, if need be lazily: what served them is dead.
func release(ctx context.Context, dir string) error {
	devs, errs := loops(dir)
	all := []error{errs}
	var points []string
	for _, dev := range devs { // file systems on these devices may be mounted anywhere
		data, err := os.ReadFile("/proc/self/mountinfo")
		all = append(all, err)
		for _, line := range strings.Split(string(data), "\n") {
			if f := strings.Fields(line); len(f) > 9 && strings.Contains(line, " "+dev+" ") {
				points = append(points, f[4])
			}
		}
	}
	below, err := mounts(dir)
	all = append(all, err)
	for _, point := range append(points, below...) {
		if _, err := lab.Run(ctx, "umount", point); err != nil {
			if _, err := lab.Run(ctx, "umount", "-l", point); err != nil && stillMounted(point) {
				all = append(all, err)
			}
		}
	}
	for _, dev := range devs {
		if _, err := lab.Run(ctx, "losetup", "-d", dev); err != nil {
			if left, _ := loops(dir); len(left) > 0 {
				all = append(all, err)
			}
		}
	}
	// A loop device is freed when its last user lets go, soon after.
	all = append(all, lab.Until(ctx, "free the loop devices of "+dir, 15*time.Second, 100*time.Millisecond, func() (bool, error) {
		left, err := loops(dir)
		return len(left) == 0, err
	}))
	return errors.Join(all...)
}

func stillMounted(point string) bool {
	found, err := mounts(point)
	return err != nil || len(found) > 0
}

// mkfs makes an XFS on dev.
func mkfs(ctx context.Context, dev string) error {
	_, err := lab.Run(ctx, "mkfs.xfs", "-q", "-f", dev)
	return err
}

// mount mounts dev on dir, which is made.
func mount(ctx context.Context, dev, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := lab.Run(ctx, "mount", "-t", "xfs", dev, dir); err != nil {
		log, _ := lab.Run(ctx, "sh", "-c", "dmesg 2>/dev/null | tail -n 5")
		return fmt.Errorf("%w\n%s", err, log)
	}
	return nil
}

func unmount(ctx context.Context, dir string) error {
	_, err := lab.Run(ctx, "umount", dir)
	return err
}

// freeSpace returns the bytes that are free on the file system of dir.
func freeSpace(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}

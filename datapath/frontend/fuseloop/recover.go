package fuseloop

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// recover takes away the mounts and loop devices below dir. We have the lock,
// so their process is dead: the mounts answer ENOTCONN, and the loop devices
// know nothing but I/O errors. Loop devices come first, while the mounts still
// give them a name to be found by.
func (f *Frontend) recover() error {
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return fmt.Errorf("fuseloop: find leftover loop devices: %w", err)
	}
	for _, file := range loops {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // unbound meanwhile
		}
		id, ok := f.leftover(strings.TrimSuffix(string(b), "\n"), "/"+fileName)
		if !ok {
			continue
		}
		l := loopDevice{path: "/dev/" + strings.Split(file, "/")[3], tag: tag(f.dir, id)}
		if err := l.abandon(); err != nil {
			return err
		}
		f.lg.Info("leftover loop device unbound", zap.String("volume-id", id), zap.String("path", l.path))
	}
	mounts, err := mountPoints("fuse." + fsType)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		id, ok := f.leftover(m, "")
		if !ok {
			continue
		}
		if err := removeMount(m); err != nil {
			return err
		}
		f.lg.Info("leftover mount removed", zap.String("volume-id", id), zap.String("path", m))
	}
	return f.removeMountPoints()
}

// removeMountPoints removes the mount points on which nothing is mounted: their process died between the two.
func (f *Frontend) removeMountPoints() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return fmt.Errorf("fuseloop: find leftover mount points: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !validID.MatchString(e.Name()) {
			continue
		}
		// One that is no empty directory is not of ours.
		if err := unix.Rmdir(filepath.Join(f.dir, e.Name())); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("fuseloop: remove leftover mount point: %w", err)
		}
	}
	return nil
}

// leftover is the id in a path of ours.
func (f *Frontend) leftover(path, suffix string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(path, f.dir+"/")
	if !ok {
		return "", false
	}
	id, ok = strings.CutSuffix(rest, suffix)
	return id, ok && validID.MatchString(id)
}

// mountPoints lists the mounts of a type, the latest first, so that stacked ones
// come off in order. It touches none of them.
func mountPoints(fsType string) ([]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("fuseloop: list mounts: %w", err)
	}
	defer file.Close()
	var found []string
	s := bufio.NewScanner(file)
	for s.Scan() {
		// 36 35 98:0 /root /mount/point options [fields] - type source options
		before, after, _ := strings.Cut(s.Text(), " - ")
		if fields := strings.Fields(before); len(fields) > 4 && strings.HasPrefix(after, fsType+" ") {
			found = append([]string{unescape(fields[4])}, found...)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("fuseloop: list mounts: %w", err)
	}
	return found, nil
}

// unescape undoes the \040 of a space, and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

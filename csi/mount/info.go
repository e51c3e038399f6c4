package mount

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// List returns what is mounted on this machine, the older first.
func (System) List() (_ []Point, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	entries, err := parse(f)
	if err != nil {
		return nil, err
	}
	points := make([]Point, len(entries))
	for i, e := range entries {
		points[i] = e.point()
	}
	return points, nil
}

// At returns what is mounted at path, whose last element is no symbolic link; nil if nothing is. Of several it is the one on top.
func (s System) At(path string) (*Point, error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	path = filepath.Join(parent, filepath.Base(path))
	points, err := s.List()
	for i := len(points) - 1; i >= 0; i-- {
		if points[i].Target == path {
			return &points[i], nil
		}
	}
	return nil, err
}

// entry is a line of proc_pid_mountinfo(5).
type entry struct {
	device           string // major:minor
	root, target, fs string
	readOnly         bool
}

// parse reads mountinfo. A line that is none is an error: nothing may be overlooked.
func parse(r io.Reader) ([]entry, error) {
	var es []entry
	for sc := bufio.NewScanner(r); ; {
		if !sc.Scan() {
			return es, sc.Err()
		}
		fields := strings.Split(sc.Text(), " ")
		dash := slices.Index(fields, "-")
		if len(fields) < 6 || dash < 6 || len(fields) < dash+3 {
			return nil, fmt.Errorf("mount: mountinfo has a line %.100q", sc.Text())
		}
		es = append(es, entry{
			device: fields[2], root: unescape(fields[3]), target: unescape(fields[4]), fs: fields[dash+1],
			readOnly: slices.Contains(strings.Split(fields[5], ","), "ro"),
		})
	}
}

// unescape undoes the kernel's \ooo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
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

func (e entry) point() Point {
	p := Point{Target: e.target, FS: e.fs, ReadOnly: e.readOnly}
	dev := e.device
	if e.root != "/" && (e.fs == "devtmpfs" || e.fs == "tmpfs") { // a file of /dev, perhaps
		if bound, ok := boundDevice(e.target); ok {
			dev, p.Block = bound, true
		}
	}
	sys := "/sys/dev/block/" + dev
	if name, err := os.Readlink(sys); err == nil {
		p.Device = "/dev/" + filepath.Base(name)
	}
	if ro, err := os.ReadFile(sys + "/ro"); err == nil && p.Block {
		p.ReadOnly = string(ro) == "1\n"
	}
	p.Backing = backing(sys)
	if name := filepath.Base(p.Backing); p.Block && p.ReadOnly && strings.HasPrefix(name, "loop") { // bound read-only, over the one that counts
		p.Backing = backing("/sys/block/" + name) // by name: the folder is lost with the mount namespace of who opened it
	}
	return p
}

// backing is the file behind the loop device of which sys is the folder.
func backing(sys string) string {
	file, err := os.ReadFile(sys + "/loop/backing_file")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(file), "\n")
}

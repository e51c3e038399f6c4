package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mountEntry is one mount of this machine.
type mountEntry struct{ source, target string }

// mountedAt returns the source of what is mounted at dir, "" if nothing is. Of several mounts on
// top of each other the uppermost, the last in the list, is seen.
func (a *app) mountedAt(dir string) (string, error) {
	entries, err := a.mounts()
	if err != nil {
		return "", fmt.Errorf("tandemctl: cannot read the mounts of this machine: %w", err)
	}
	var source string
	for _, e := range entries {
		if e.target == dir {
			source = e.source
		}
	}
	return source, nil
}

func readMounts() ([]mountEntry, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountinfo(string(data)), nil
}

// parseMountinfo reads what proc(5) describes:
// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parseMountinfo(text string) []mountEntry {
	var out []mountEntry
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 2 {
			continue
		}
		out = append(out, mountEntry{source: unescape(right[1]), target: unescape(left[4])})
	}
	return out
}

// unescape undoes the kernel's \040 for blanks and its like.
var unescaper = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescape(s string) string { return unescaper.Replace(s) }

func isBlockDevice(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fmt.Errorf("%s is no block device", path)
	}
	return nil
}

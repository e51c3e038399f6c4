// Package machine describes the machine that a benchmark ran on.
package machine

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// Machine describes where figures were taken.
type Machine struct {
	Name   string `json:"name"` // short, for file names: CPU count and model
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory string `json:"memory"`
	Kernel string `json:"kernel"`
	Disk   string `json:"disk"` // file system of the working directory
	Go     string `json:"go"`
	Commit string `json:"commit"`
	Load   string `json:"load_before"` // load average at the start: a busy machine spoils the figures
}

// Describe asks the machine about itself and the file system of dir; what cannot be learnt is left empty.
func Describe(ctx context.Context, dir string) Machine {
	ask := func(argv ...string) string {
		out, err := lab.Run(ctx, argv...)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(out)
	}
	m := Machine{
		CPU: procField("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(), Memory: procField("/proc/meminfo", "MemTotal"),
		Kernel: ask("uname", "-sr"), Disk: ask("findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", dir),
		Go: runtime.Version(), Load: firstFields("/proc/loadavg", 3),
	}
	if wd, err := os.Getwd(); err == nil {
		m.Commit = ask("git", "-C", wd, "describe", "--tags", "--always", "--dirty")
	}
	if kb, err := strconv.ParseInt(strings.TrimSuffix(m.Memory, " kB"), 10, 64); err == nil {
		m.Memory = fmt.Sprintf("%d GiB", (kb+1<<19)>>20)
	}
	words := strings.Fields(strings.ToLower(m.CPU))
	for i, w := range words {
		words[i] = strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return -1
		}, w)
	}
	m.Name = fmt.Sprintf("%dcpu-%s", m.Cores, strings.Join(words[:min(2, len(words))], "-"))
	return m
}

func procField(path, key string) string {
	data, _ := os.ReadFile(path)
	for _, line := range strings.Split(string(data), "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func firstFields(path string, n int) string {
	data, _ := os.ReadFile(path)
	f := strings.Fields(string(data))
	return strings.Join(f[:min(n, len(f))], " ")
}

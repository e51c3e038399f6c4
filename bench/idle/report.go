package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/bench/machine"
)

// report is everything that one run found.
type report struct {
	Began     time.Time       `json:"began"`
	Machine   machine.Machine `json:"machine"`
	Frontend  string          `json:"frontend"`
	SizeBytes int64           `json:"size_bytes"`
	Parallel  int             `json:"parallel"`
	Steps     []step          `json:"steps"`
	End       end             `json:"end"`
}

// step is what was found with so many volumes attached.
type step struct {
	Volumes       int     `json:"volumes"`
	Added         int     `json:"added"` // since the step before
	CreateSeconds float64 `json:"create_seconds"`
	AttachSeconds float64 `json:"attach_seconds"`
	Nodes         []usage `json:"nodes"`
}

// usage is what a daemon uses while nothing is asked of it.
type usage struct {
	Node        string  `json:"node"`
	RSS         float64 `json:"rss_mib"`
	PSS         float64 `json:"pss_mib"`
	CorePercent float64 `json:"core_percent"` // of one processor
	Threads     int     `json:"threads"`
	Files       int     `json:"files"` // open
}

// end is how long it took to take everything away.
type end struct {
	DetachSeconds float64 `json:"detach_seconds"`
	DeleteSeconds float64 `json:"delete_seconds"`
}

// write writes the results as Markdown and JSON into dir, and the Markdown to out too.
func (r *report) write(dir string, out io.Writer) error {
	name := filepath.Join(dir, r.Began.Format("2006-01-02")+"-csi-"+r.Frontend+"-"+r.Machine.Name)
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(name+".json", append(data, '\n'), 0o644); err != nil {
		return err
	}
	text := r.markdown()
	if err := os.WriteFile(name+".md", []byte(text), 0o644); err != nil {
		return err
	}
	_, err = io.WriteString(out, text)
	return err
}

func (r *report) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	m := r.Machine
	p("# Attached volumes that nobody uses, %s, %s", r.Began.Format("2006-01-02 15:04 MST"), m.Name)
	p("")
	p("%s, %d cores, %s of memory; %s; %s; %s; commit %s; load before: %s.", m.CPU, m.Cores, m.Memory, m.Kernel, m.Disk, m.Go, m.Commit, m.Load)
	p("")
	p("Two nodes in two domains and a witness, embedded kvdb. Thin volumes of %d MiB with a replica on each node, all attached at %s by %s, %d requests at a", r.SizeBytes>>20, home, r.Frontend, r.Parallel)
	p("time. Nobody opens a device. Memory is of the process, in MiB; processor time is that of the process and of the kernel for it, in per cent of one core.")
	p("")
	p("| volumes | node | RSS | PSS | %% of a core | threads | open files |")
	p("|---:|---|---:|---:|---:|---:|---:|")
	for _, s := range r.Steps {
		for _, u := range s.Nodes {
			p("| %d | %s | %.1f | %.1f | %.2f | %d | %d |", s.Volumes, u.Node, u.RSS, u.PSS, u.CorePercent, u.Threads, u.Files)
		}
	}
	p("")
	p("| volumes | added | created a second | attached a second |")
	p("|---:|---:|---:|---:|")
	total := 0
	for _, s := range r.Steps {
		if s.Added > 0 {
			p("| %d | %d | %.1f | %.1f |", s.Volumes, s.Added, rate(s.Added, s.CreateSeconds), rate(s.Added, s.AttachSeconds))
		}
		total += s.Added
	}
	p("")
	p("All %d at the end: %.1f detached and %.1f deleted a second.", total, rate(total, r.End.DetachSeconds), rate(total, r.End.DeleteSeconds))
	return b.String()
}

func rate(n int, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return float64(n) / seconds
}

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/bench/machine"
)

// report is everything that one run of the benchmark found.
type report struct {
	Began      time.Time       `json:"began"`
	Machine    machine.Machine `json:"machine"`
	Fio        string          `json:"fio"`
	Size       string          `json:"size"`
	Runtime    float64         `json:"runtime_s"`
	Rounds     int             `json:"rounds"`
	Jobs       []*job          `json:"jobs"`
	Echo       echo            `json:"grpc_echo"`
	Recovery   recovery        `json:"recovery"`
	StorageRTO float64         `json:"storage_rto_s,omitempty"`
}

// job has the measurements of one job, by target, one a round.
type job struct {
	Name string                   `json:"name"`
	Runs map[string][]measurement `json:"runs"`
}

func (r *report) add(name, target string, m measurement) {
	i := slices.IndexFunc(r.Jobs, func(j *job) bool { return j.Name == name })
	if i < 0 {
		i = len(r.Jobs)
		r.Jobs = append(r.Jobs, &job{Name: name, Runs: map[string][]measurement{}})
	}
	r.Jobs[i].Runs[target] = append(r.Jobs[i].Runs[target], m)
}

// median returns the run with the median IOPS: a run that happened, not a mix of several.
func median(runs []measurement) measurement {
	sorted := slices.SortedFunc(slices.Values(runs), func(a, b measurement) int { return cmp.Compare(a.IOPS, b.IOPS) })
	if len(sorted) == 0 {
		return measurement{}
	}
	return sorted[(len(sorted)-1)/2]
}

// write writes the results as Markdown and JSON into dir, and the Markdown to out too.
func (r *report) write(dir string, out io.Writer) error {
	name := filepath.Join(dir, r.Began.Format("2006-01-02")+"-"+r.Machine.Name)
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
	p("# Benchmark of %s, %s", r.Began.Format("2006-01-02 15:04 MST"), m.Name)
	p("")
	p("%s, %d cores, %s of memory; %s; %s; %s; %s; commit %s; load before: %s.", m.CPU, m.Cores, m.Memory, m.Kernel, m.Disk, m.Go, r.Fio, m.Commit, m.Load)
	p("")
	p("A set of %s, written once in full before; each job %.0f s, median of %d rounds. Floor: fio on a raw file, O_DIRECT, psync at", r.Size, r.Runtime, r.Rounds)
	p("depth 1 and io_uring above. Tandem: two replicas on the same disk, a daemon each, mutual TLS over loopback, through NBD on a unix")
	p("socket. An acknowledged write is in both replicas' devices, their caches flushed only in the fsync jobs; there an operation is the")
	p("write and its flush, its percentiles the sums of the two.")
	p("")
	p("| job | floor IOPS | p50 / p99 / p99.9 µs | Tandem IOPS | MB/s | p50 / p99 / p99.9 µs | p50 ratio | IOPS ratio | server CPU s/100k |")
	p("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, j := range r.Jobs {
		f, t := median(j.Runs["floor"]), median(j.Runs["tandem"])
		p("| %s | %.0f | %.0f / %.0f / %.0f | %.0f | %.1f | %.0f / %.0f / %.0f | %.2f | %.2f | %.1f |", j.Name, f.IOPS, f.P50, f.P99, f.P999,
			t.IOPS, t.MBps, t.P50, t.P99, t.P999, ratio(t.P50, f.P50), ratio(t.IOPS, f.IOPS), t.ServerCPU)
	}
	p("")
	p("gRPC echo (4 KiB there, 16 bytes back, one stream, no TLS): p50 %.0f µs, p99 %.0f µs.", r.Echo.P50, r.Echo.P99)
	if i := slices.IndexFunc(r.Jobs, func(j *job) bool { return j.Name == depth1Job }); i >= 0 {
		f, h, t := median(r.Jobs[i].Runs["floor"]), median(r.Jobs[i].Runs["hop"]), median(r.Jobs[i].Runs["tandem"])
		least := h.P50 + r.Echo.P50 + f.P50
		p("Client hop (the same job on nbdkit's memory plugin, unix socket): p50 %.0f µs. Client hop, echo and the write to the device are what", h.P50)
		p("%s cannot go below while it goes over gRPC: %.0f µs at p50, of which Tandem takes %.2f times.", depth1Job, least, ratio(t.P50, least))
	}
	p("")
	p("| resync after a kill, by what was written meanwhile | time | speed |")
	p("|---|---:|---:|")
	for _, one := range r.Recovery.Resyncs {
		p("| %.0f MB | %.2f s | %.0f MB/s |", float64(one.Bytes)/1e6, one.Seconds, one.MBps)
	}
	c := r.Recovery.Client
	p("| %.0f MB, while a client runs %s | %.2f s | %.0f MB/s |", float64(r.Recovery.Busy.Bytes)/1e6, depth1Job, r.Recovery.Busy.Seconds, r.Recovery.Busy.MBps)
	p("")
	p("That client: p50 / p99 %.0f / %.0f µs beside the resync, %.0f / %.0f µs just before without it.", c.Resync.P50, c.Resync.P99, c.Quiet.P50, c.Quiet.P99)
	p("")
	p("The coordinator's process is killed after writes all over the set and started again: first read after %.1f s, of which leases take up to 3 s;", r.Recovery.Takeover.FirstRead)
	p("%.0f MB were then left to compare, which took %.1f s more.", float64(r.Recovery.Takeover.Bytes)/1e6, r.Recovery.Takeover.Reconciled)
	if r.StorageRTO > 0 {
		p("")
		p("Storage RTO in the demo (from SIGKILL of a site to the first read at the other, with the operator's commands given at once): %.1f s.", r.StorageRTO)
	}
	return b.String()
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

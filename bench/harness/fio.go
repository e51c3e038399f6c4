package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// jobOrder is the order in which jobs run and are shown; a job that is not in it comes last.
var jobOrder = []string{
	"w4k-qd1", "w4k-qd1-fsync", "w4k-qd32", "w4k-qd32-fsync", "r4k-qd1", "r4k-qd32", "w128k-qd8", "r128k-qd8",
}

// loadJobs returns the names of the job files of dir.
func loadJobs(dir, only string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.fio"))
	if err != nil {
		return nil, err
	}
	var jobs []string
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".fio")
		if name != preconditionJob && strings.HasPrefix(name, only) {
			jobs = append(jobs, name)
		}
	}
	if len(jobs) == 0 && only != "none" {
		return nil, fmt.Errorf("no job in %s begins with %q", dir, only)
	}
	rank := func(name string) int {
		if i := slices.Index(jobOrder, name); i >= 0 {
			return i
		}
		return len(jobOrder)
	}
	slices.SortStableFunc(jobs, func(a, b string) int { return rank(a) - rank(b) })
	return jobs, nil
}

const (
	preconditionJob = "precondition"
	depth1Job       = "w4k-qd1"  // the one whose hops are measured, too
	scatterJob      = "w4k-qd32" // reaches every region of the set
)

// target is what a job runs on: a file, or an NBD export.
type target struct {
	name string
	file string       // for the floor
	uri  string       // for NBD
	pids func() []int // of the servers behind it
}

// engine returns the fio settings that lead to t at a queue depth: psync at depth 1, io_uring above, both O_DIRECT; NBD is
// asynchronous at any depth.
func (t target) engine(depth1 bool) string {
	switch {
	case t.uri != "":
		return "ioengine=nbd\nuri=" + t.uri + "\n"
	case depth1:
		return "ioengine=psync\ndirect=1\nfilename=" + t.file + "\n"
	default:
		return "ioengine=io_uring\ndirect=1\nfilename=" + t.file + "\n"
	}
}

// fio runs job files.
type fio struct {
	dir, work string
	size      string
	runtime   time.Duration
}

// measurement is what one run of one job gave. Times are in microseconds.
type measurement struct {
	IOPS      float64 `json:"iops"`
	MBps      float64 `json:"mb_per_s"` // 10^6 bytes
	Mean      float64 `json:"mean_us"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	P999      float64 `json:"p99_9_us"`
	SyncP50   float64 `json:"sync_p50_us,omitempty"` // of the flush alone, in the fsync jobs
	SyncP99   float64 `json:"sync_p99_us,omitempty"`
	ServerCPU float64 `json:"server_cpu_s_per_100k"` // user and system seconds of all servers, per 100,000 operations
}

// precondition writes the whole set once.
func (f *fio) precondition(ctx context.Context, t target) error {
	_, err := f.fio(ctx, preconditionJob, t)
	return err
}

// run runs one job once.
func (f *fio) run(ctx context.Context, job string, t target) (measurement, error) {
	var before float64
	if t.pids != nil {
		before = cpuSeconds(t.pids())
	}
	res, err := f.fio(ctx, job, t)
	if err != nil {
		return measurement{}, err
	}
	d := res.Write
	if strings.HasPrefix(job, "r") {
		d = res.Read
	}
	m := measurement{IOPS: d.IOPS, MBps: d.Bytes / 1e6, Mean: d.Lat.Mean / 1e3, P50: d.Lat.P["50.000000"] / 1e3,
		P99: d.Lat.P["99.000000"] / 1e3, P999: d.Lat.P["99.900000"] / 1e3}
	if strings.HasSuffix(job, "fsync") { // an operation is the write and its flush; the sum of two percentiles is near enough
		s := res.Sync.Lat
		m.SyncP50, m.SyncP99 = s.P["50.000000"]/1e3, s.P["99.000000"]/1e3
		m.Mean += s.Mean / 1e3
		m.P50 += m.SyncP50
		m.P99 += m.SyncP99
		m.P999 += s.P["99.900000"] / 1e3
	}
	if t.pids != nil && d.IOs > 0 {
		m.ServerCPU = (cpuSeconds(t.pids()) - before) / d.IOs * 1e5
	}
	return m, nil
}

// result is the part of fio's JSON that is read.
type result struct {
	Error       int
	Read, Write direction
	Sync        struct {
		Lat latency `json:"lat_ns"`
	}
}

type direction struct {
	IOPS  float64 `json:"iops"`
	Bytes float64 `json:"bw_bytes"`
	IOs   float64 `json:"total_ios"`
	Lat   latency `json:"lat_ns"`
}

type latency struct {
	Mean float64            `json:"mean"`
	P    map[string]float64 `json:"percentile"`
}

// fio runs a job file with the engine, the target, the size and the run time in front of it.
func (f *fio) fio(ctx context.Context, job string, t target) (result, error) {
	common, err := os.ReadFile(filepath.Join(f.dir, "common.ini"))
	if err != nil {
		return result{}, err
	}
	own, err := os.ReadFile(filepath.Join(f.dir, job+".fio"))
	if err != nil {
		return result{}, err
	}
	head := fmt.Sprintf("[global]\n%ssize=%s\nruntime=%d\n", t.engine(strings.Contains(string(own), "iodepth=1\n")), f.size, max(1, int(f.runtime.Seconds())))
	path := filepath.Join(f.work, job+"-"+t.name+".fio")
	if err := os.WriteFile(path, []byte(head+string(common)+string(own)), 0o644); err != nil {
		return result{}, err
	}
	out, err := lab.Run(ctx, "fio", "--output-format=json", path)
	if err != nil {
		return result{}, err
	}
	var all struct{ Jobs []result }
	if i := strings.IndexByte(out, '{'); i < 0 || json.Unmarshal([]byte(out[i:]), &all) != nil || len(all.Jobs) != 1 {
		return result{}, fmt.Errorf("fio %s on %s printed %.300q", job, t.name, out)
	}
	if all.Jobs[0].Error != 0 {
		return result{}, fmt.Errorf("fio %s on %s: error %d", job, t.name, all.Jobs[0].Error)
	}
	return all.Jobs[0], nil
}

package main

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestEveryJobRuns runs every job file shortly on a small file: a typing error in one is found here, not in a night's run.
func TestEveryJobRuns(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("needs Debian's fio")
	}
	dir, err := filepath.Abs("../fio")
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	f := &fio{dir: dir, work: work, size: "4M", runtime: time.Second}
	on := target{name: "file", file: filepath.Join(work, "set")}
	if err := f.precondition(t.Context(), on); err != nil {
		t.Fatal(err)
	}
	jobs, err := loadJobs(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, job := range jobs {
		m, err := f.run(t.Context(), job, on)
		if err != nil {
			t.Errorf("%s: %v", job, err)
			continue
		}
		if m.IOPS <= 0 || m.P50 <= 0 || m.P99 < m.P50 {
			t.Errorf("%s: %+v", job, m)
		}
	}
}

package main

import (
	"strings"
	"testing"
)

func TestMedianIsARunThatHappened(t *testing.T) {
	runs := []measurement{{IOPS: 30, P50: 3}, {IOPS: 10, P50: 1}, {IOPS: 20, P50: 2}}
	if m := median(runs); m.IOPS != 20 || m.P50 != 2 {
		t.Errorf("median %+v, want the run with 20", m)
	}
	if runs[0].IOPS != 30 {
		t.Error("median changed the order of the runs")
	}
}

func TestMarkdownHasEveryJobOnce(t *testing.T) {
	r := &report{Echo: echo{P50: 100}}
	for range 3 {
		for _, name := range []string{"w4k-qd1", "r4k-qd1"} {
			r.add(name, "floor", measurement{IOPS: 200, P50: 50})
			r.add(name, "tandem", measurement{IOPS: 100, P50: 100})
		}
		r.add("w4k-qd1", "hop", measurement{P50: 10})
	}
	text := r.markdown()
	for _, want := range []string{"| w4k-qd1 | 200 |", "| r4k-qd1 | 200 |", "| 2.00 | 0.50 |", "160 µs at p50, of which Tandem takes 0.62 times"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if n := strings.Count(text, "| w4k-qd1 |"); n != 1 {
		t.Errorf("w4k-qd1 stands there %d times", n)
	}
}

func TestJobsAreInOrder(t *testing.T) {
	jobs, err := loadJobs("../fio", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(jobs) != len(jobOrder) {
		t.Errorf("jobs %v, want %v", jobs, jobOrder)
	}
	for i := range min(len(jobs), len(jobOrder)) {
		if jobs[i] != jobOrder[i] {
			t.Errorf("job %d is %s, want %s", i, jobs[i], jobOrder[i])
		}
	}
}

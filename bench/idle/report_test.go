package main

import (
	"os"
	"strings"
	"testing"
)

func TestUsageOfThisProcess(t *testing.T) {
	var u usage
	if err := u.memory(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if u.RSS < 1 || u.PSS < 1 || u.PSS > u.RSS || u.Threads < 1 || u.Files < 3 {
		t.Errorf("this process uses %+v", u)
	}
	before, err := processorSeconds(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for sum := uint32(0); ; { // until a tick has gone by
		for i := range uint32(1 << 24) {
			sum = sum*31 + i
		}
		now, err := processorSeconds(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			break
		}
		if now < before || sum == 42 && now == 0 {
			t.Fatalf("%v s of a processor, %v before", now, before)
		}
	}
}

func TestRates(t *testing.T) {
	r := report{Frontend: "nbd", SizeBytes: 1 << 30, Parallel: 10, Steps: []step{
		{Volumes: 0, Nodes: []usage{{Node: home, RSS: 10}}},
		{Volumes: 200, Added: 200, CreateSeconds: 10, AttachSeconds: 40, Nodes: []usage{{Node: home, RSS: 20, CorePercent: 1.5}}},
	}, End: end{DetachSeconds: 20, DeleteSeconds: 8}}
	text := r.markdown()
	for _, line := range []string{"| 200 | a1 | 20.0 | 0.0 | 1.50 | 0 | 0 |", "| 200 | 200 | 20.0 | 5.0 |", "All 200 at the end: 10.0 detached and 25.0 deleted a second."} {
		if !strings.Contains(text, line) {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
	if strings.Contains(text, "| 0 | 0 | ") {
		t.Error("a rate of nothing is told")
	}
}

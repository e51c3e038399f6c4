package main

import (
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

// report is everything that one run found.
type report struct {
	Began   time.Time       `json:"began"`
	Machine machine.Machine `json:"machine"`
	Series  []series        `json:"series"`
}

// merge puts the series of the same event and round trip together, in order of appearance.
func merge(all []series) (merged []series) {
	for _, s := range all {
		i := slices.IndexFunc(merged, func(m series) bool { return m.Event == s.Event && m.RTT == s.RTT })
		if i < 0 {
			merged = append(merged, s)
			continue
		}
		m := &merged[i]
		m.Seconds = append(m.Seconds, s.Seconds...)
		m.Errors, m.Lost, m.Answers = m.Errors+s.Errors, m.Lost+s.Lost, m.Answers+s.Answers
	}
	return merged
}

// quantile returns the smallest value that q of all are not above; 0 <= q <= 1, sorted and not empty.
func quantile(sorted []float64, q float64) float64 {
	i := int(q*float64(len(sorted)) + 0.999999)
	return sorted[max(0, min(i, len(sorted))-1)]
}

// verdict is an error if the client lost something that it was told it had, or if a move by plan or an eviction gave it an error.
func (r *report) verdict() error {
	for _, s := range r.Series {
		if s.Lost > 0 {
			return fmt.Errorf("%s: %d blocks that were answered are lost", s.Event, s.Lost)
		}
		if s.Errors > 0 && s.Event != siteLost {
			return fmt.Errorf("%s: the client was answered %d errors", s.Event, s.Errors)
		}
	}
	return nil
}

// write writes the results as Markdown and JSON into dir, and the Markdown to out too.
func (r *report) write(dir string, out io.Writer) error {
	name := filepath.Join(dir, r.Began.Format("2006-01-02")+"-pauses-"+r.Machine.Name)
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
	p("# Pauses and failovers, %s, %s", r.Began.Format("2006-01-02 15:04 MST"), m.Name)
	p("")
	p("%s, %d cores, %s of memory; %s; %s; %s; commit %s; load before: %s.", m.CPU, m.Cores, m.Memory, m.Kernel, m.Disk, m.Go, m.Commit, m.Load)
	p("")
	p("Two sites and a witness, each in a network of its own, packets delayed by half of the round trip; embedded kvdb, two replicas. A consumer")
	p("writes one block of 4 KiB after another over NBD, each with FUA. Seconds between two answers that it got; for a switchover how long its")
	p("requests were held; for the loss of a site from the SIGKILL of all its processes to the first write that the other site answers, by the")
	p("aggressive profile. A group has %d volumes, each with a consumer: of a cut, asked for at the other site, how long the writes of any were held;", groupOf)
	p("of a split the longest pause of any of them.")
	p("")
	p("| event | round trip, ms | times | least | p50 | p90 | p99 | most | errors | lost |")
	p("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, s := range r.Series {
		v := slices.Sorted(slices.Values(s.Seconds))
		p("| %s | %g | %d | %.3f | %.3f | %.3f | %.3f | %.3f | %d | %d of %d |", s.Event, s.RTT, len(v), v[0],
			quantile(v, 0.5), quantile(v, 0.9), quantile(v, 0.99), v[len(v)-1], s.Errors, s.Lost, s.Answers)
	}
	for _, s := range r.Series {
		p("")
		p("%s, round trip %g ms:", s.Event, s.RTT)
		p("")
		p("```")
		b.WriteString(histogram(s.Seconds))
		p("```")
	}
	return b.String()
}

// steps are widths of a histogram's bars, in seconds.
var steps = []float64{0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10}

// histogram draws how often what was measured, a line for each of about a dozen equal steps.
func histogram(values []float64) string {
	v := slices.Sorted(slices.Values(values))
	step := steps[len(steps)-1]
	for _, s := range steps {
		if (v[len(v)-1]-v[0])/s <= 12 {
			step = s
			break
		}
	}
	counts := map[int]int{}
	most := 0
	for _, x := range v {
		i := int(x / step)
		counts[i]++
		most = max(most, counts[i])
	}
	var b strings.Builder
	for i := int(v[0] / step); i <= int(v[len(v)-1]/step); i++ {
		bar := strings.Repeat("#", (counts[i]*50+most-1)/most)
		fmt.Fprintf(&b, "%7.2f s %4d %s\n", float64(i)*step, counts[i], bar)
	}
	return b.String()
}

package main

import (
	"strings"
	"testing"
)

func TestQuantile(t *testing.T) {
	v := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, tc := range []struct{ q, want float64 }{{0, 1}, {0.1, 1}, {0.5, 5}, {0.9, 9}, {0.99, 10}, {1, 10}} {
		if got := quantile(v, tc.q); got != tc.want {
			t.Errorf("quantile %v is %v, want %v", tc.q, got, tc.want)
		}
	}
	if got := quantile(v[:1], 0.5); got != 1 {
		t.Errorf("the median of one value is %v, want that", got)
	}
}

func TestHistogramCountsEveryValueOnce(t *testing.T) {
	want := "   2.04 s    2 ##################################################\n" +
		"   2.05 s    0 \n" +
		"   2.06 s    1 #########################\n"
	if got := histogram([]float64{2.045, 2.066, 2.047}); got != want {
		t.Errorf("drawn:\n%s\nwant:\n%s", got, want)
	}
}

func TestMergedSeriesKeepWhatWasLost(t *testing.T) {
	r := report{Series: merge([]series{
		{Event: siteLost, RTT: 10, Seconds: []float64{8}, Errors: 1, Answers: 100},
		{Event: plannedMove, RTT: 10, Seconds: []float64{0.1}, Answers: 100},
		{Event: siteLost, RTT: 10, Seconds: []float64{9}, Lost: 1, Answers: 100},
	})}
	if len(r.Series) != 2 || len(r.Series[0].Seconds) != 2 || r.Series[0].Answers != 200 {
		t.Fatalf("merged as %+v", r.Series)
	}
	if r.verdict() == nil {
		t.Error("a lost block is no failure")
	}
	r.Series[0].Lost = 0
	if err := r.verdict(); err != nil {
		t.Errorf("an error answered by a site that was killed: %v", err)
	}
	r.Series[1].Errors = 1
	if r.verdict() == nil {
		t.Error("an error during a switchover is no failure")
	}
	if text := r.markdown(); !strings.Contains(text, "| site killed, failover | 10 | 2 | 8.000 | 8.000 | 9.000 | 9.000 | 9.000 | 1 | 0 of 200 |") {
		t.Errorf("markdown:\n%s", text)
	}
}

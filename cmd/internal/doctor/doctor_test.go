package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	pb "github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
)

// well is what a node measures of which nothing is wrong.
func well() *pb.MeasureResponse {
	return &pb.MeasureResponse{
		Links:  []*pb.Link{{Node: "b", Sent: 20, Answered: 20, P50Us: 400, P99Us: 900, JitterUs: 50, ClockUs: -20_000, Mtu: 1500}},
		Disks:  []*pb.Disk{{Path: "/pool", Sync: &pb.Latency{Samples: 8, P50Us: 300, MaxUs: 2000}}},
		Kvdb:   &pb.Latency{Samples: 8, P50Us: 900, MaxUs: 3000},
		Timers: &pb.Timers{SuspectUs: 2_000_000, OperationUs: 4_000_000, LeaseUs: 10_000_000},
	}
}

// Each thing that is wrong is judged as what it is, and nothing else is.
func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(a *Answer)
		want []string // "check verdict" of what is not OK
	}{
		{"well", func(*Answer) {}, nil},
		{"just 10 ms", func(a *Answer) { a.Links[0].P99Us = 10_000 }, nil},
		{"above 10 ms", func(a *Answer) { a.Links[0].P99Us = 10_001 }, []string{"rtt-p99 BAD"}},
		{"above a quarter of a short timer", func(a *Answer) { a.Links[0].P99Us, a.Timers.SuspectUs = 9_000, 30_000 }, []string{"rtt-p99 BAD"}},
		{"jitter", func(a *Answer) { a.Links[0].JitterUs = 6_000 }, []string{"jitter WARN"}},
		{"one lost", func(a *Answer) { a.Links[0].Answered = 19 }, []string{"loss WARN"}},
		{"many lost", func(a *Answer) { a.Links[0].Answered = 17 }, []string{"loss BAD"}},
		{"all lost", func(a *Answer) { a.Links[0].Answered, a.Links[0].Error = 0, "refused" }, []string{"link BAD"}},
		{"clock ahead", func(a *Answer) { a.Links[0].ClockUs = 1_500_000 }, []string{"clock WARN"}},
		{"clock behind", func(a *Answer) { a.Links[0].ClockUs = -1_500_000 }, []string{"clock WARN"}},
		{"small mtu", func(a *Answer) { a.Links[0].Mtu = 1400 }, []string{"mtu WARN"}},
		{"mtu not known", func(a *Answer) { a.Links[0].Mtu = 0 }, nil},
		{"slow disk", func(a *Answer) { a.Disks[0].Sync.MaxUs = 60_000 }, []string{"disk-sync WARN"}},
		{"very slow disk", func(a *Answer) { a.Disks[0].Sync.MaxUs = 1_100_000 }, []string{"disk-sync BAD"}},
		{"broken disk", func(a *Answer) { a.Disks[0] = &pb.Disk{Path: "/pool", Error: "input/output error"} }, []string{"disk-sync BAD"}},
		{"slow kvdb", func(a *Answer) { a.Kvdb.MaxUs = 300_000 }, []string{"kvdb WARN"}},
		{"very slow kvdb", func(a *Answer) { a.Kvdb.MaxUs = 2_600_000 }, []string{"kvdb BAD"}},
		{"no kvdb", func(a *Answer) { a.Kvdb, a.KvdbError = nil, "no leader" }, []string{"kvdb BAD"}},
		{"not registered", func(a *Answer) { a.Offline = true }, []string{"lease BAD"}},
		{"no answer", func(a *Answer) { a.MeasureResponse, a.Err = nil, errors.New("refused") }, []string{"answer BAD"}},
		{"garbage", func(a *Answer) {
			a.MeasureResponse = &pb.MeasureResponse{Links: []*pb.Link{{Answered: 9}}, Disks: []*pb.Disk{{}}}
		}, nil},
	} {
		a := Answer{Node: "a", MeasureResponse: well()}
		tc.do(&a)
		var got []string
		for _, c := range Judge([]Answer{a}) {
			if c.Verdict != pb.Verdict_VERDICT_OK {
				got = append(got, c.Name+" "+c.Verdict.String()[len("VERDICT_"):])
			}
			if (c.Advice == "") != (c.Verdict == pb.Verdict_VERDICT_OK) || c.Limit == "" || c.Value == "" || c.Subject == "" {
				t.Errorf("%s: %v", tc.name, c)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

// serve serves m on the loopback, and returns how it is reached.
func serve(t *testing.T, m pb.MeasurerServer) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterMeasurerServer(s, m)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

func dial(p Peer) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+p.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// A node measures what is there, says of the rest why not, and leaves nothing behind.
func TestMeasure(t *testing.T) {
	there := serve(t, NewMeasurer(func() (Node, error) { return Node{}, errors.New("not asked") }))
	dir := t.TempDir()
	n := Node{
		Peers: func() []Peer {
			return []Peer{{Name: "there", Address: there}, {Name: "beats", Address: there, P50: 1, P99: 7 * time.Millisecond, Samples: 3}, {Name: "away", Address: "127.0.0.1:1"}}
		},
		Dial: dial, Pools: []string{dir, dir + "/nothing"}, Timers: &pb.Timers{},
		Read: func(context.Context) error { return errors.New("no leader") },
	}
	r, err := NewMeasurer(func() (Node, error) { return n, nil }).Measure(t.Context(), &pb.MeasureRequest{})
	if err != nil {
		t.Fatal(err)
	}
	away, beats, link := r.Links[0], r.Links[1], r.Links[2]
	if away.Answered != 0 || away.Error == "" {
		t.Error(away)
	}
	if beats.P99Us != 7000 {
		t.Error(beats)
	}
	if link.Sent != probes || link.Answered != probes || link.P50Us <= 0 || link.P99Us < link.P50Us || link.Mtu < warnMTU || micros(link.ClockUs).Abs() > micros(link.P99Us) {
		t.Error(link)
	}
	if r.Disks[0].Error != "" || r.Disks[0].Sync.Samples != syncs || r.Disks[0].Sync.MaxUs < r.Disks[0].Sync.P50Us || r.Disks[1].Error == "" {
		t.Error(r.Disks)
	}
	if r.KvdbError != "no leader" {
		t.Error(r.KvdbError)
	}
}

// The whole answer: nodes, domains that are not active, and what a loss does, also while the kvdb is gone.
func TestExamine(t *testing.T) {
	v := &clusterdomain.View{
		Nodes:   []clusterdomain.Node{{Name: "a", Domain: "x", Online: true}, {Name: "b", Domain: "y"}},
		Domains: []clusterdomain.Domain{{Name: "x", State: arbiter.Active}, {Name: "y", State: arbiter.Fenced}},
	}
	s := NewServer(ServerOptions{
		View: func(context.Context) *clusterdomain.View { return v },
		Volumes: func(context.Context) ([]arbiter.Volume, error) {
			return []arbiter.Volume{{ID: "1", Name: "data", Coordinator: arbiter.Coordinator{Node: "a", Domain: "x"}, Replicas: []arbiter.Replica{{Node: "a", Domain: "x", InSync: true}}}}, nil
		},
		Ask: func(_ context.Context, n clusterdomain.Node) (*pb.MeasureResponse, error) {
			if n.Name == "b" {
				return nil, errors.New("refused")
			}
			return well(), nil
		},
	})
	r, err := s.Examine(t.Context(), &pb.ExamineRequest{})
	if err != nil || r.Verdict != pb.Verdict_VERDICT_BAD {
		t.Fatal(r, err)
	}
	var got []string
	for _, c := range r.Checks {
		if c.Verdict != pb.Verdict_VERDICT_OK {
			got = append(got, fmt.Sprintf("%s of %s", c.Name, c.Subject))
		}
	}
	if want := []string{"lease of b", "answer of b", "domain of y", "site-loss of volume data"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if l := r.Losses; len(l) != 2 || l[0].Volumes[0].Text != "would stop: its only in-sync copy is in x" || l[1].Volumes[0].Fate != "unaffected" {
		t.Error(r.Losses)
	}
	s.o.Volumes = func(context.Context) ([]arbiter.Volume, error) { return nil, errors.New("no leader") }
	if r, err := s.Examine(t.Context(), &pb.ExamineRequest{}); err != nil || !slices.ContainsFunc(r.Checks, func(c *pb.Check) bool { return c.Name == "volumes" }) {
		t.Error(r, err)
	}
}

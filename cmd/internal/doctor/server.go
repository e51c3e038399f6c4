package doctor

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	pb "github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
)

// askTimeout bounds the question to one node.
const askTimeout = measureTimeout + 2*time.Second

// ServerOptions of a Server. All are required.
type ServerOptions struct {
	// View returns the cluster as it is now, or as it was last known.
	View func(ctx context.Context) *clusterdomain.View
	// Volumes returns all volumes; it may fail without the kvdb.
	Volumes func(ctx context.Context) ([]arbiter.Volume, error)
	// Ask has a node, also this one, measure.
	Ask func(ctx context.Context, n clusterdomain.Node) (*pb.MeasureResponse, error)
}

// Server implements the gRPC service Doctor.
type Server struct {
	pb.UnimplementedDoctorServer
	o ServerOptions
}

// NewServer returns the service.
func NewServer(o ServerOptions) *Server { return &Server{o: o} }

// Examine implements Doctor. It answers also without the kvdb, with what was last known of the cluster.
func (s *Server) Examine(ctx context.Context, _ *pb.ExamineRequest) (*pb.ExamineResponse, error) {
	v := s.o.View(ctx)
	got := make(chan Answer)
	for _, n := range v.Nodes {
		go func() {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			r, err := s.o.Ask(ctx, n)
			got <- Answer{Node: n.Name, Offline: !n.Online, MeasureResponse: r, Err: err}
		}()
	}
	var answers []Answer
	for range v.Nodes {
		answers = append(answers, <-got)
	}
	slices.SortFunc(answers, func(a, b Answer) int { return cmp.Compare(a.Node, b.Node) })
	resp := &pb.ExamineResponse{Checks: Judge(answers), Verdict: pb.Verdict_VERDICT_OK}
	for _, d := range v.Domains {
		if !d.State.MayAttach() {
			resp.Checks = append(resp.Checks, &pb.Check{
				Name: "domain", Subject: d.Name, Value: string(d.State), Limit: string(clusterdomain.Active), Verdict: pb.Verdict_VERDICT_WARN,
				Advice: "nothing fails over to it: activate it when it is well",
			})
		}
	}
	vols, err := s.o.Volumes(ctx)
	if err != nil {
		resp.Checks = append(resp.Checks, &pb.Check{
			Name: "volumes", Subject: "cluster", Value: err.Error(), Limit: "an answer", Verdict: pb.Verdict_VERDICT_BAD,
			Advice: "what a site loss would do is not known until the kvdb answers",
		})
	}
	resp.Losses = losses(v, vols)
	for _, l := range resp.Losses {
		for _, vol := range l.Volumes {
			if vol.Bad {
				resp.Checks = append(resp.Checks, &pb.Check{
					Name: "site-loss", Subject: "volume " + vol.Name, Value: "without " + l.Domain + " it " + vol.Text, Limit: "it goes on",
					Verdict: pb.Verdict_VERDICT_WARN, Advice: "see \"tandemctl volume inspect\" for what keeps its other replicas from being in sync",
				})
			}
		}
	}
	slices.SortStableFunc(resp.Checks, func(a, b *pb.Check) int { return cmp.Compare(b.Verdict, a.Verdict) })
	if len(resp.Checks) > 0 {
		resp.Verdict = resp.Checks[0].Verdict
	}
	return resp, nil
}

// losses tells what the loss of each domain would do now.
func losses(v *clusterdomain.View, vols []arbiter.Volume) []*pb.DomainLoss {
	states := map[string]arbiter.State{}
	for _, d := range v.Domains {
		states[d.Name] = d.State
	}
	var all []*pb.DomainLoss
	for _, d := range v.Domains {
		l := &pb.DomainLoss{Domain: d.Name}
		for _, x := range arbiter.Lose(arbiter.View{Domains: states, Volumes: vols}, d.Name) {
			l.Volumes = append(l.Volumes, &pb.VolumeLoss{
				VolumeId: x.Volume.ID, Name: x.Volume.Name, Fate: string(x.Fate), Text: x.Text(), Nodes: x.Nodes, Bad: x.Bad(),
			})
		}
		all = append(all, l)
	}
	return all
}

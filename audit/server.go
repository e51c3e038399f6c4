package audit

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/tandem-storage/tandem/audit/auditpb"
)

// Actor is who asks for something over gRPC: what he says, and the name in his certificate if he has one.
func Actor(ctx context.Context, said string) string {
	name := ""
	if p, ok := peer.FromContext(ctx); ok {
		if t, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
			name = t.State.PeerCertificates[0].Subject.CommonName
		}
	}
	switch {
	case said == "" && name == "":
		return "unknown"
	case said == "" || said == name:
		return name
	case name == "":
		return said
	default:
		return fmt.Sprintf("%s (certificate of %s)", said, name)
	}
}

// Server implements the gRPC service Audit. It returns errors of the store; an interceptor gives them their codes.
type Server struct {
	auditpb.UnimplementedAuditServer
	l *Log
}

// NewServer returns the service over l.
func NewServer(l *Log) *Server { return &Server{l: l} }

// ListAudit implements Audit.
func (s *Server) ListAudit(ctx context.Context, r *auditpb.ListAuditRequest) (*auditpb.ListAuditResponse, error) {
	es, unreadable, err := s.l.Entries(ctx, time.UnixMilli(r.SinceUnixMs))
	if err != nil {
		return nil, err
	}
	resp := &auditpb.ListAuditResponse{Unreadable: uint32(unreadable)}
	if n := int(r.Limit); n > 0 && len(es) > n {
		resp.Omitted, es = uint32(len(es)-n), es[len(es)-n:]
	}
	for i := range es {
		resp.Entries = append(resp.Entries, entryPB(&es[i]))
	}
	return resp, nil
}

// VerifyAudit implements Audit.
func (s *Server) VerifyAudit(ctx context.Context, _ *auditpb.VerifyAuditRequest) (*auditpb.VerifyAuditResponse, error) {
	r, err := s.l.Verify(ctx)
	if err != nil {
		return nil, err
	}
	resp := &auditpb.VerifyAuditResponse{Intact: r.Intact(), FirstSeq: r.First, LastSeq: r.Last, LastHash: r.Hash.String(), Broken: r.Broken}
	for _, f := range r.Faults {
		resp.Faults = append(resp.Faults, &auditpb.Fault{Seq: f.Seq, Text: f.Text})
	}
	return resp, nil
}

func entryPB(e *Entry) *auditpb.Entry {
	return &auditpb.Entry{
		Seq: e.Seq, UnixMs: e.Time.UnixMilli(), Node: e.Node, Actor: e.Actor, Verb: e.Verb, Object: e.Object, Reason: e.Reason,
		Outcome: e.Outcome, Epoch: e.Epoch, DataLossVolumes: e.Lost, PrevHash: e.Prev.String(), Hash: e.Hash.String(),
	}
}

package rpcstatus

import (
	"context"
	"errors"
	"strings"
	"unicode"

	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errorDomain is the domain of every ErrorInfo detail: the reasons are ours.
const errorDomain = "tandem-storage.github.io"

// Status returns the gRPC status of err; nil is OK. In this order: the context's
// errors, a status that another node answered (passed on), the table. Whatever else comes is a
// bug of ours: Internal, never Unknown.
func Status(err error) *status.Status {
	switch {
	case err == nil:
		return status.New(codes.OK, "")
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, err.Error())
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK && s.Code() != codes.Unknown {
		return s
	}
	r := find(err, errors.Is)
	if r == nil {
		return status.New(codes.Internal, err.Error())
	}
	s := status.New(r.code, err.Error())
	if d, derr := s.WithDetails(&errdetails.ErrorInfo{Reason: reason(r.name), Domain: errorDomain}); derr == nil {
		return d
	}
	return s // not reached: only the code OK takes no details
}

// Code returns the code of Status.
func Code(err error) codes.Code { return Status(err).Code() }

// UnaryServerInterceptor maps the errors of unary handlers. lg may be nil.
func UnaryServerInterceptor(lg *zap.Logger) grpc.UnaryServerInterceptor {
	lg = orNop(lg)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		resp, err := handler(ctx, req)
		if err != nil {
			return nil, edge(lg, info.FullMethod, err)
		}
		return resp, nil
	}
}

// StreamServerInterceptor maps the errors of streaming handlers. lg may be nil.
func StreamServerInterceptor(lg *zap.Logger) grpc.StreamServerInterceptor {
	lg = orNop(lg)
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if err := handler(srv, ss); err != nil {
			return edge(lg, info.FullMethod, err)
		}
		return nil
	}
}

// edge maps err and logs what must not happen.
func edge(lg *zap.Logger, method string, err error) error {
	s := Status(err)
	if s.Code() == codes.Internal {
		lg.Error("request failed for an unforeseen reason", zap.String("method", method), zap.Error(err))
	}
	return s.Err()
}

func orNop(lg *zap.Logger) *zap.Logger {
	if lg == nil {
		return zap.NewNop()
	}
	return lg
}

// reason is the wire form of a sentinel's name: datapath/block.ErrNoSpace -> DATAPATH_BLOCK_NO_SPACE.
func reason(name string) string {
	folder, ident, _ := strings.Cut(name, ".")
	var b strings.Builder
	b.WriteString(strings.ToUpper(strings.ReplaceAll(folder, "/", "_")))
	runes := []rune(strings.TrimPrefix(ident, "Err"))
	for i, r := range runes {
		// A word begins at an upper-case letter after a lower-case one, and at the last of a run: BadUUID, NotFound.
		if unicode.IsUpper(r) && (i == 0 || unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToUpper(r))
	}
	return b.String()
}

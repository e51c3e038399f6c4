package rpcstatus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// The codes of house.md 8.
func TestCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{block.ErrMisaligned, codes.InvalidArgument},
		{&block.RequestError{Err: block.ErrOutOfRange}, codes.OutOfRange},
		{fmt.Errorf("volume %q: %w", "v", replication.ErrVolumeNotFound), codes.NotFound},
		{kvdb.ErrNotFound, codes.NotFound},
		{clusterdomain.ErrDomainNotFound, codes.NotFound},
		{replication.ErrNoInSyncReplica, codes.FailedPrecondition},
		{fmt.Errorf("a: %w", fmt.Errorf("b: %w", kvdb.ErrConflict)), codes.Aborted},
		{kvdb.ErrNoLeader, codes.Unavailable},
		{block.ErrNoSpace, codes.ResourceExhausted},
		{block.ErrNotSupported, codes.Unimplemented},
		{block.ErrChecksum, codes.DataLoss},
		{errors.New("anything else"), codes.Internal},
		{errors.Join(errors.New("x"), kvdb.ErrNoLeader), codes.Unavailable},
		// Who says more decides: the volume, not the store beneath.
		{fmt.Errorf("%w: %w", replication.ErrVolumeNotFound, kvdb.ErrUnavailable), codes.NotFound},
		// The context's errors come first.
		{fmt.Errorf("%w: %w", kvdb.ErrUnavailable, context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("%w: %w", kvdb.ErrUnavailable, context.Canceled), codes.Canceled},
		// What another node answered is passed on.
		{fmt.Errorf("ask n2: %w", status.Error(codes.NotFound, "x")), codes.NotFound},
		{status.Error(codes.Unknown, "x"), codes.Internal},
	} {
		if got := Code(tc.err); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.err, got, tc.want)
		}
	}
}

var reasonSyntax = regexp.MustCompile(`^[A-Z][A-Z0-9_]+[A-Z0-9]$`)

// Every row arrives at the client with its code, reason and hint, however deep it was wrapped.
func TestRoundTrip(t *testing.T) {
	reasons := map[string]string{}
	for _, r := range table {
		if r.code == codes.OK || r.code == codes.Unknown {
			t.Errorf("%s maps to %v", r.name, r.code)
		}
		why := reason(r.name)
		if other, dup := reasons[why]; dup || !reasonSyntax.MatchString(why) || len(why) > 63 {
			t.Errorf("bad reason %q of %s (also of %q)", why, r.name, other)
		}
		reasons[why] = r.name
		f := FromStatus(Status(fmt.Errorf("outer: %w", fmt.Errorf("%w: detail", r.err))).Err())
		if f.Code != r.code || f.Reason != why || f.Hint != r.hint || f.Message != "outer: "+r.err.Error()+": detail" {
			t.Errorf("%s: got %+v", r.name, f)
		}
		if f.Exit == ExitOK || f.Exit == ExitInterrupted {
			t.Errorf("%s: exit code %d", r.name, f.Exit)
		}
	}
	if got := reason("datapath/block.ErrIO") + reason("replication.ErrBadUUID"); got != "DATAPATH_BLOCK_IOREPLICATION_BAD_UUID" {
		t.Errorf("got %s", got)
	}
}

func TestFromStatusOfOthers(t *testing.T) {
	for _, tc := range []struct {
		err  error
		exit Exit
		hint bool
	}{
		{nil, ExitOK, false},
		{status.Error(codes.Unavailable, "connection refused"), ExitUnavailable, true},
		{status.Error(codes.DeadlineExceeded, ""), ExitTimeout, true},
		{status.Error(codes.Canceled, ""), ExitInterrupted, false},
		{status.Error(codes.Unimplemented, ""), ExitError, true},
		{status.Error(codes.AlreadyExists, ""), ExitExists, false},
		{status.Error(codes.PermissionDenied, ""), ExitDenied, true},
		{errors.New("no status"), ExitError, false},
	} {
		f := FromStatus(tc.err)
		if f.Exit != tc.exit || (f.Hint != "") != tc.hint {
			t.Errorf("%v: got %+v", tc.err, f)
		}
	}
}

func TestInterceptors(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	unary, stream := UnaryServerInterceptor(zap.New(core)), StreamServerInterceptor(zap.New(core))
	call := func(err error) error {
		resp, uerr := unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/s/U"},
			func(context.Context, any) (any, error) { return "answer", err })
		if (err == nil) != (resp == "answer") {
			t.Errorf("error %v with answer %v", err, resp)
		}
		serr := stream(nil, nil, &grpc.StreamServerInfo{FullMethod: "/s/S"}, func(any, grpc.ServerStream) error { return err })
		if status.Code(uerr) != status.Code(serr) {
			t.Errorf("unary %v, stream %v", uerr, serr)
		}
		return uerr
	}
	if err := call(nil); err != nil {
		t.Error(err)
	}
	if err := call(kvdb.ErrNoLeader); status.Code(err) != codes.Unavailable || logs.Len() > 0 {
		t.Errorf("got %v, %d lines logged", err, logs.Len())
	}
	if err := call(errors.New("nil map")); status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	if got := logs.FilterMessage("request failed for an unforeseen reason").FilterField(zap.String("method", "/s/U")).Len(); got != 1 {
		t.Errorf("a bug was logged %d times", got)
	}
	if _, err := UnaryServerInterceptor(nil)(t.Context(), nil, &grpc.UnaryServerInfo{},
		func(context.Context, any) (any, error) { return nil, errors.New("x") }); status.Code(err) != codes.Internal {
		t.Errorf("nil logger: got %v", err)
	}
}

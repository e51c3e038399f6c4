package rpcstatus

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit is the exit code of a command-line program.
type Exit int

// Exit codes of tandemctl; scripts depend on them: only append.
const (
	ExitOK           Exit = 0
	ExitError        Exit = 1   // any other error
	ExitUsage        Exit = 2   // wrong flags or arguments, here or at the daemon
	ExitNotFound     Exit = 3   // no such volume, domain or node
	ExitPrecondition Exit = 4   // the state does not allow it, and will not by itself
	ExitUnavailable  Exit = 5   // the daemon, the kvdb or the cluster cannot answer now
	ExitExists       Exit = 6   // exists already, and is different
	ExitConflict     Exit = 7   // another change came first: look again, then try again
	ExitNoRoom       Exit = 8   // no space, or a limit is reached
	ExitTimeout      Exit = 9   // not done within --timeout; it may still be done
	ExitDataLoss     Exit = 10  // data are damaged
	ExitDenied       Exit = 11  // not authenticated, or not allowed
	ExitInterrupted  Exit = 130 // SIGINT or SIGTERM
)

// Failure is a failed request as the client sees it.
type Failure struct {
	Code    codes.Code
	Reason  string // machine-readable, "KVDB_NO_LEADER"; "" if the server gave none
	Message string // what, and why
	Hint    string // what to do; "" if nothing better is known than the message
	Exit    Exit
}

// FromStatus explains the error of a gRPC call.
func FromStatus(err error) Failure {
	s := status.Convert(err)
	f := Failure{Code: s.Code(), Message: s.Message(), Exit: exitOf(s.Code())}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			f.Reason = info.GetReason()
		}
	}
	for i := range table {
		if f.Reason != "" && reason(table[i].name) == f.Reason {
			f.Hint = table[i].hint
			return f
		}
	}
	f.Hint = codeHints[f.Code]
	return f
}

// codeHints serve where the server gave no reason that is known here: mostly the transport's own errors.
var codeHints = map[codes.Code]string{
	codes.Unavailable:      "is tandemd running? --endpoint or TANDEM_ENDPOINT names another node or socket",
	codes.DeadlineExceeded: "it may still be done: look at the present state; --timeout sets how long to wait",
	codes.Unimplemented:    "tandemd is of another version than tandemctl: compare with \"tandemctl version\"",
	codes.Unauthenticated:  "give the certificate of this cluster with --tls-ca, --tls-cert and --tls-key",
	codes.PermissionDenied: "the certificate or the user may not do this",
	codes.Aborted:          hintRetry,
	codes.Internal:         hintBug,
}

func exitOf(c codes.Code) Exit {
	switch c {
	case codes.OK:
		return ExitOK
	case codes.InvalidArgument, codes.OutOfRange:
		return ExitUsage
	case codes.NotFound:
		return ExitNotFound
	case codes.FailedPrecondition:
		return ExitPrecondition
	case codes.Unavailable:
		return ExitUnavailable
	case codes.AlreadyExists:
		return ExitExists
	case codes.Aborted:
		return ExitConflict
	case codes.ResourceExhausted:
		return ExitNoRoom
	case codes.DeadlineExceeded:
		return ExitTimeout
	case codes.DataLoss:
		return ExitDataLoss
	case codes.Unauthenticated, codes.PermissionDenied:
		return ExitDenied
	case codes.Canceled:
		return ExitInterrupted
	default: // Unknown, Internal, Unimplemented
		return ExitError
	}
}

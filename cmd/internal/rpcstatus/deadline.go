package rpcstatus

import (
	"context"
	"time"

	"google.golang.org/grpc"
)

// answerTime is kept of the caller's time for the answer, at most.
const answerTime = 500 * time.Millisecond

// AnswerInTime ends the time of a handler a little before that of its caller, so
// that the error which says what the handler waited for still arrives. Otherwise
// the caller only learns that its time is over.
func AnswerInTime() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if end, ok := ctx.Deadline(); ok {
			keep := min(answerTime, time.Until(end)/10)
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, end.Add(-keep))
			defer cancel()
		}
		return handler(ctx, req)
	}
}

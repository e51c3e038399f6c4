package rpcstatus

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnswerInTime(t *testing.T) {
	for _, tc := range []struct{ callers, handlers time.Duration }{
		{20 * time.Second, 19500 * time.Millisecond},
		{time.Second, 900 * time.Millisecond},
		{0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			if tc.callers > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tc.callers)
				defer cancel()
			}
			got, err := AnswerInTime()(ctx, nil, nil, func(ctx context.Context, _ any) (any, error) {
				end, ok := ctx.Deadline()
				if !ok {
					return time.Duration(0), nil
				}
				return time.Until(end), nil
			})
			if err != nil || got != tc.handlers {
				t.Errorf("a caller with %v gives its handler %v (%v), want %v", tc.callers, got, err, tc.handlers)
			}
		})
	}
}

package volume

import (
	"context"
	"fmt"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// policyRequest asks for another protection.
type policyRequest struct {
	to     replication.Policy
	expect replication.Epoch
	reason string
	done   chan error // gets what became of it
}

// policies is the worker's knowledge of the changes of the protection that were asked for.
type policies struct {
	last uint64
	open map[uint64]*policyRequest
}

// SetPolicy puts another protection in force, decided in epoch expect, 0 for any, for a reason that the history of the
// configuration keeps, and returns when it is: from then on no write is acknowledged
// against it. core.ErrEpoch and core.ErrNotChanged mean that it is not, and will not be; replication.ErrNotCoordinator that the volume is not
// served here any more. When ctx ends before that the outcome is unknown.
func (v *Volume) SetPolicy(ctx context.Context, p replication.Policy, expect replication.Epoch, reason string) error {
	r := &policyRequest{to: p, expect: expect, reason: reason, done: make(chan error, 1)}
	v.post(volumeInput{kind: inPolicy, policy: r})
	select {
	case err := <-r.done:
		return err
	case <-v.dead:
		return replication.ErrNotCoordinator
	case <-ctx.Done():
		return fmt.Errorf("replication/volume: the protection may be changed still: %w", ctx.Err())
	}
}

// askPolicy hands a request to the state machine.
func (v *Volume) askPolicy(t int64, r *policyRequest) {
	if v.policies.open == nil {
		v.policies.open = make(map[uint64]*policyRequest)
	}
	v.policies.last++
	v.policies.open[v.policies.last] = r
	v.core.SetPolicy(t, v.policies.last, r.to, r.expect, r.reason)
}

// observePolicy answers who asked.
func (v *Volume) observePolicy(e *core.Event) {
	if r := v.policies.open[e.ID]; e.Kind == core.EventPolicy && r != nil {
		r.done <- e.Err
		delete(v.policies.open, e.ID)
	}
}

// dropPolicies answers who asked a state machine that is gone: it had not begun.
func (v *Volume) dropPolicies() {
	for id, r := range v.policies.open {
		r.done <- fmt.Errorf("%w: the volume was being moved meanwhile, ask again", core.ErrNotChanged)
		delete(v.policies.open, id)
	}
}

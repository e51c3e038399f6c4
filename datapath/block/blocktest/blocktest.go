// Package blocktest has what tests of block devices are made of.
//
// Run is the conformance suite that every block.Device passes, RunCrash the one
// for devices that can show what a power cut would leave. Mem is an in-memory
// device with a write cache that can be lost. Inject, Delay, Record and Model
// are filters: devices over a device that fail, hold, note and check its
// requests. They stack in any order.
//
// Random parts have the seeds of internal/testseed.
package blocktest

import (
	"errors"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/internal/testseed"
)

// Factory makes a device of zeroes of the size, in bytes, a multiple of 1 MiB.
// The suite closes it; cleaning up behind it is the factory's, by t.Cleanup.
type Factory func(t *testing.T, size int64) block.Device

// check is one property of a device. It returns what contradicts it.
type check struct {
	name string
	size int64 // bytes of the device that it wants
	run  func(r *rig) error
}

// completionLimit is how long a check waits for a completion before it calls
// the request lost. Far longer than any device may take.
const completionLimit = 60 * time.Second

// Run checks that the factory's devices keep the contract of block.Device, each
// property on a fresh device in a subtest of its own.
func Run(t *testing.T, name string, factory Factory) {
	t.Run(name, func(t *testing.T) {
		for _, c := range checks {
			t.Run(c.name, func(t *testing.T) {
				seed := testseed.Of(t)
				if err := c.on(factory(t, c.size), seed); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
}

// on runs the check on d and closes it.
func (c check) on(d block.Device, seed uint64) error {
	r := newRig(d, c.size, seed)
	if err := c.run(r); err != nil {
		// Close all the same: the next test wants the device's lock. What it
		// says about a device that has failed already does not matter.
		_ = r.close()
		return errors.Join(r.violation(), err)
	}
	return r.finish()
}

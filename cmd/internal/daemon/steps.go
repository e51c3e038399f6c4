package daemon

import (
	"github.com/tandem-storage/tandem/csi/mount"
	"github.com/tandem-storage/tandem/datapath/frontend/fuseloop"
)

// First arguments of this program as it starts itself, for what would keep it from ending when it is killed.
const (
	mountStep    = "mount-step"
	fuseloopStep = "fuseloop-step"
)

// This program, whatever is by now at the path that it was started from.
var (
	mountHelper    = []string{"/proc/self/exe", mountStep}
	fuseloopHelper = []string{"/proc/self/exe", fuseloopStep}
)

// Step does what this program was started by itself for, if args say that it was, and returns the exit code.
func Step(args []string) (code int, is bool) {
	switch {
	case len(args) > 0 && args[0] == mountStep:
		return mount.Step(args[1:]), true
	case len(args) > 0 && args[0] == fuseloopStep:
		return fuseloop.Step(args[1:]), true
	default:
		return 0, false
	}
}

// Package invariant asserts what must hold whatever the input and the outside
// world do: a failed check is a bug of ours, never an operating error.
//
// Checks are on under the build tags invariants and race, and cost nothing
// otherwise. Guard a check whose condition is dear to compute with Enabled. Fail
// is for the few places where going on would do harm in production too.
package invariant

import "fmt"

// Check panics with the message if cond is false and checks are on.
func Check(cond bool, format string, args ...any) {
	if Enabled && !cond {
		panic(fmt.Sprintf("invariant violated: "+format, args...))
	}
}

// Fail panics with the message, in every build: the program stops rather than go
// on with data that it could damage.
func Fail(format string, args ...any) {
	panic(fmt.Sprintf("invariant violated: "+format, args...))
}

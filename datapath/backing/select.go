package backing

import "fmt"

// Engine is a way to do I/O.
type Engine int

// Engines.
const (
	EngineAuto    Engine = iota // the best that the kernel offers
	EngineThreads               // blocking system calls on a bounded number of threads
	EngineURing                 // io_uring
)

func (e Engine) String() string {
	switch e {
	case EngineAuto:
		return "auto"
	case EngineThreads:
		return "threads"
	case EngineURing:
		return "io_uring"
	default:
		return fmt.Sprintf("engine(%d)", int(e))
	}
}

// newEngine starts the engine that was asked for; nil if it cannot be had. why
// tells what kept io_uring from starting.
func newEngine(want Engine) (e engine, kind Engine, why error) {
	if want == EngineThreads {
		return newThreads(), EngineThreads, nil
	}
	u, err := newUring(ringFlags)
	switch {
	case err == nil:
		return u, EngineURing, nil
	case want == EngineAuto:
		return newThreads(), EngineThreads, err
	default:
		return nil, want, err
	}
}

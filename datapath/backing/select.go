package backing

import "fmt"

// Engine is a way to do I/O.
type Engine int

// Engines.
const (
	EngineAuto    Engine = iota // the best that the kernel offers
	EngineThreads               // blocking system calls on a bounded number of threads
)

func (e Engine) String() string {
	switch e {
	case EngineAuto:
		return "auto"
	case EngineThreads:
		return "threads"
	default:
		return fmt.Sprintf("engine(%d)", int(e))
	}
}

// newEngine starts the engine that was asked for. why tells what kept a better one from starting.
func newEngine(Engine) (e engine, kind Engine, why error) {
	return newThreads(), EngineThreads, nil
}

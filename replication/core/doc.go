// Package core has the state machines of synchronous replication: Coordinator,
// the node where a volume is attached, and Replica, one copy of it.
//
// Both are pure: an input changes the state and appends to a Ready what is to be
// done (messages to send, requests to make, disk operations, answers), and the
// caller reports how that went as further inputs. They start no goroutine, read
// no clock and do no I/O, so that the same inputs give the same outputs, in
// production and under a simulator.
//
// The rules that the comments cite as I1..I28 are listed in docs/design/protocol.md.
package core

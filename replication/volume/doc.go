// Package volume runs the replication of a node's volumes: it gives the pure
// state machines of package core their disks, connections, clock and kvdb.
//
// A Manager holds the replicas that lie on this node and the volumes that are
// attached here. A Volume is a block.Device: its requests are ordered and fanned
// out by a core.Coordinator, to the local replica by direct calls and to the
// others over package transport.
//
// # Threads
//
// A state machine is not run by a goroutine of its own. Whoever brings an input
// appends it to the inbox, and if nobody is at work, works the inbox off itself:
// a request travels from the front end's reader to the disk and the connection
// without a change of goroutine, and inputs that come meanwhile are taken as a
// batch. Carrying out a Ready never blocks: disk operations are asynchronous,
// remote messages go to the connection's sender, and what waits (control calls,
// the kvdb, superblocks) has goroutines of its own.
package volume

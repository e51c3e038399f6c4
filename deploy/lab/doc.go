// Package lab runs a throw-away Tandem cluster on one machine: every node, and
// every etcd member where the kvdb is etcd, is a process with its own
// directories and its own ports on loopback, with certificates of a CA made for
// it. The demo and the benchmark are told on it.
//
// It drives tandemd and tandemctl as an operator does, by configuration file and
// command line, and imports nothing of them.
package lab

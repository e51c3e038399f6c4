// Package tandem is the root of Tandem, metro-replicated block storage: every
// write of a volume is on a replica in each of two cluster domains before it is
// acknowledged, and a volume survives the loss of either.
//
// There is no code here, only the tests that hold the shape of the tree: which
// folder may use which (deps_test.go) and which words are said (words_test.go).
// Start reading at package replication, then cmd/internal/daemon, which puts
// everything together.
package tandem

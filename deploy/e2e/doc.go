// Package e2e has the tests that drive Tandem from outside: real tandemd
// processes in two domains with a witness, real clients, real faults.
//
// The processes are built by TestMain and run by package lab, which they share with
// the demo. Nothing of Tandem is imported: the tests know command lines,
// configuration files, logs and devices, as an operator does. What they assert is
// what the protocol promises: no confirmed write is lost, in-sync replicas are
// identical byte by byte, a stall has a name, an error names its thing.
//
// Root is needed for loop devices, file systems and networks; the tests of those
// skip themselves without it. The writer of testdata/writer.py needs libnbd.
package e2e

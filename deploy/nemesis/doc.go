// Package nemesis breaks a living cluster in every way that a test of processes
// can, while a volume is read and written, and checks afterwards that everything
// that was read can be explained.
//
// A Plan says what is broken, when and for how long; it follows from a seed. A
// History has what consumers asked of the volume and what they were answered, with
// the times. Check holds it against what a disk would have done: every block is a
// register, a write that was never acknowledged may have happened or not, and nothing
// else is forgiven but what docs/limitations.md says of reads.
//
// The consumers are testdata/consumer.py on libnbd; the sites are those of package lab,
// whose networks lose packets as they are told.
package nemesis

// Package replication has the vocabulary of Tandem's synchronous replication:
// identifiers, the configuration of a volume, the messages between nodes, and the
// errors. What they mean is told here; docs/design/protocol.md has the invariants
// I1 to I28 that the comments cite.
//
// # The parties
//
// A volume has one to three replicas, each on the disk of one node. The node where
// the volume is attached is its coordinator: it orders the volume's I/O and sends
// it to the replicas, its own one included. The configuration of the volume (type
// Config) stands in the kvdb and is changed by compare-and-set only. It names the
// coordinator, its term, and the in-sync set: the replicas that hold every
// acknowledged write, from which alone a takeover may start.
//
// # When is a write acknowledged
//
//  1. A write is numbered, its checksums are computed over a private copy, and it
//     waits until nothing overlapping is in flight (I15).
//  2. It goes to every member of the in-sync set, and to a replica that is being
//     resynced. One on another node verifies the checksums of what came over the
//     network. Each marks the region in its activity log and the blocks in the dirty
//     maps of the members that are missing, and writes.
//  3. It is acknowledged when every member of the in-sync set then in force has
//     written it (I3). It is then in the disks of all of them, perhaps in their
//     volatile caches: it survives the loss of any replica, and of all processes,
//     but not a power cut of all replicas at once.
//  4. A flush is acknowledged when each of them has made every write acknowledged
//     before it stable (I5). A write with FUA is stable on each before its
//     acknowledgement. What was flushed survives everything that leaves one disk of
//     the in-sync set.
//
// A read is answered by one in-sync replica, the local one if there is one, when
// no overlapping write is in flight and the blocks are known to be equal everywhere.
//
// # What happens when something fails
//
//   - A replica, its node, its disk or the link to it: acknowledgements stop. When it
//     is not back within the suspect timeout the coordinator evicts it: the others
//     note durably that they keep a dirty map for it (prepare), the configuration
//     without it is put in force (compare-and-set), the others store it (commit), and
//     only then acknowledgements go on, without it (I9). The consumer sees a pause.
//   - It comes back: it is sealed, marked SYNCING, gets every new write, and the
//     blocks of its dirty map are compared by hash and copied where they differ.
//     When nothing is left, acknowledgements wait for it too, it is flushed, and the
//     configuration takes it into the in-sync set (I18). What its own activity log
//     names is compared too; everything, if that log is lost.
//   - The coordinator: nobody answers its consumer. Any node may take over: it puts
//     itself in force with a higher term (RECOVERING), seals members of the in-sync
//     set, each of which promises durably never to serve an older term and waits
//     until the older one's I/O has left the kernel (I6, I17), and puts the set of
//     those that answered in force (ACTIVE). One of them sealed is enough to make the
//     old coordinator short of an acknowledgement for ever (I7). Blocks that may
//     differ are made equal before their first read (I16).
//   - A site: the failures above together. The takeover in the other site does not
//     wait for replicas of a domain that is fenced.
//   - The kvdb, or its witness: nothing, while the in-sync set is whole (I/O needs no
//     kvdb). Attaching, evicting and joining wait for it.
//   - Power of a replica while the coordinator lives: it is treated as lost and
//     resynced; if it was the only one, the attachment ends loudly (ErrPoisoned).
//   - The link between the sites, both alive: the coordinator evicts the far replica
//     or, if the far side takes over first, is deposed. One compare-and-set wins.
package replication

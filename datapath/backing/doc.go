// Package backing keeps replicas on a local file system.
//
// A Pool is a directory on XFS or ext4. A Replica in it is a directory with the
// superblock and dirty maps of package meta and with the data in chunk files,
// made when they are first written:
//
//	<pool>/pool.json                    whose pool this is
//	<pool>/lock                         flock of the process that has it open
//	<pool>/replicas/<volume>.<replica>/ one replica
//	    sb                              superblock, two slots; mirrored in xattr user.tandem.sb of the directory
//	    lock                            flock of the process that has it open
//	    al                              activity log
//	    cs                              checksums of the blocks
//	    dm.<peer>, dm.free.<n>          dirty maps, and allocated files for the next ones
//	    chunks                          which chunks have been made
//	    snaps, snap/<id>/<n>            which snapshots there are, and their chunks
//	    head/<n>                        chunk n: bytes [n*ChunkSize, (n+1)*ChunkSize)
//	<pool>/tmp/, <pool>/trash/          half-made and half-removed replicas, emptied by OpenPool
//
// # Durability
//
// A Replica is a block.Device with a volatile write cache. Data are written with
// O_DIRECT at explicit offsets; a flush is an fdatasync of every chunk that was
// written since its last one, and FUA is the write followed by an fdatasync of
// its chunk. RWF_DSYNC is not used: kernels have lost unwritten extents under it.
//
// An ActivityLog is told of a region before data are written to it. Its records are
// written through O_DSYNC: the file has been written in full when it was made, so
// that there are no unwritten extents, and one record is two writes at once that a
// disk with FUA makes stable without emptying its cache.
//
// # Checksums
//
// A read returns what was written or fails with block.ErrChecksum, for blocks whose
// checksum is known. They are kept in memory for the regions in the log, taken over from
// block.Request.Sums where there are such, and stored before the log forgets a region.
// Nothing that goes wrong with them fails a request.
//
// # Snapshots
//
// Replica.Cut takes a snapshot, on file systems with reflink. From then on a chunk is cloned before it is
// first changed, and the write waits for that; until then the snapshot and the head share it. A Snapshot is
// read-only and checked by checksums of its own (docs/design/0027). Without snapshots requests see a nil pointer.
//
// # Engines
//
// Reads and writes go through one io_uring a pool, where the kernel has it: one
// io_uring_enter starts a batch, one goroutine, woken through an eventfd in the
// Go poller, collects completions. A read or write that is alone, fdatasync and
// fallocate go to a bounded pool of threads, which is also the whole engine where
// there is no io_uring. No request of 4 KiB allocates.
//
// Measured with BenchmarkReplica beside fio (direct, same size, no flush) on ext4
// on a virtio disk, two cores that others used too, 2026-11-21: requests/s, median
// latency in µs, CPU µs a request, thread wake-ups a request.
//
//	                  fio             threads                 io_uring + threads
//	write 4k,   1     12.6k  71 43    7.7k   122  91 2.6      9.7k  102  68 2.6
//	write 4k,   32    78.7k 391  7    24.2k 1220  35 1.3      63.9k 473   8 0.16
//	write 128k, 1     7.6k   90 44    5.7k   169 130 2.8      7.7k  126  77 2.8
//	write 128k, 32    18.2k 1663 14   13.4k 2310  55 1.6      21.0k 1480 31 0.8
//	read 4k,    1     9.8k   69 47    8.1k   119  82 2.5      8.1k  106  65 2.7
//	read 4k,    32    49.3k 643  9    24.2k 1138  33 1.4      49.7k 558   9 0.18
//	FUA 4k,     1                     4.6k   214 136 5.3      2.4k  209 125 6.0
//	FUA 4k,     32                    18.7k 1567  39 1.5      21.0k 955  24 0.9
//
// fio is psync at depth 1 and io_uring above. The lone request through the ring
// alone took 3.0 to 3.4 wake-ups and 82 µs of CPU. On busy cores completions come
// one by one, batches stay small, and a write at depth 32 costs 30 to 60 µs of CPU.
//
// # Errors
//
// A failed fdatasync leaves the data unknown and a second one would lie, so it is
// never retried: any error of a write or a sync other than lack of space faults
// the replica for good, and a failed sync faults every open replica of the pool,
// which share the file system (I25). A read error fails that read alone, and so does
// a checksum that does not match.
//
// # Locks
//
// I/O can outlive the process that started it. A thread that waits for the disk
// keeps its process, and so its flocks, alive; io_uring requests do not, therefore
// the lock files are registered with the ring, which the kernel takes down after
// its last request. Whoever gets the lock knows that nothing is in flight (I17).
// That is also why a lock is free only shortly after a process has been killed.
//
// # Identity
//
// Directories and chunk files carry their identity together with the number and
// generation of their inode. A copy, made with whatever tool, has another inode
// and is refused: data of unknown age must not pass for a replica that has every
// acknowledged write. The remedy is always the same, a new replica and a resync.
package backing

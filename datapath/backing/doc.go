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
//	    dm.<peer>, dm.free.<n>          dirty maps, and allocated files for the next ones
//	    chunks                          which chunks have been made
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
// # Errors
//
// A failed fdatasync leaves the data unknown and a second one would lie, so it is
// never retried: any error of a write or a sync other than lack of space faults
// the replica for good, and a failed sync faults every open replica of the pool,
// which share the file system (I25). A read error fails that read alone.
//
// # Identity
//
// Directories and chunk files carry their identity together with the number and
// generation of their inode. A copy, made with whatever tool, has another inode
// and is refused: data of unknown age must not pass for a replica that has every
// acknowledged write. The remedy is always the same, a new replica and a resync.
package backing

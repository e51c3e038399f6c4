// Package vm boots virtual machines and cuts their power.
//
// A Machine is a qemu without hardware help, with Debian's kernel and an
// initramfs of our own programs. Its disks are served to it by this process over
// NBD. A Disk knows which writes the guest's kernel has flushed, so that Cut can
// take the power away from several of them at one instant and leave of the rest
// what it likes: nothing, all, or some blocks. That is what no test on a living
// kernel can show: the page cache, the device's cache, io_uring, XFS and its
// log, the daemon and its store, all lost at once, and really gone.
//
// The unit of loss is 4 KiB, as everywhere (see package block): a disk that tears
// such a block is outside of what Tandem promises.
//
// The agent (command agent) is the first process in a machine. Package order has
// what the two say to each other. A Ledger follows what the agent's writers tell
// and knows what a volume must hold and may hold after each cut.
//
// The tests that boot machines have the build tag vm: make test-vm.
package vm

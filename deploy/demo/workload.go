package main

import "context"

// workload is an application on the volume together with the client that keeps
// its ledger. The story is the same for each.
type workload interface {
	// probe returns when the device that path names answered a read.
	probe(ctx context.Context, path string) error
	// open puts the application on the device, at a site: the first time on an empty device, later on what is there, also
	// after a crash.
	open(ctx context.Context, site, path string, first bool) error
	// write lets the clients write until stop, or until the site dies.
	write(ctx context.Context) error
	// confirmed is how many transactions were confirmed so far.
	confirmed() int
	// kill ends the application at once, as it ends when its site dies. Requests of it may still wait in the kernel.
	kill() error
	// mourn returns when the clients have noticed the death, and lets go of what is left of the dead site's devices, which it
	// served from below dir, on this host: in the demo the sites share one kernel.
	mourn(ctx context.Context, dir string) error
	// stop ends the clients in order.
	stop() error
	// check compares the ledger with what the open application has.
	check(ctx context.Context) (comparison, error)
	// close takes the application off the device in order; the device is free then.
	close(ctx context.Context) error
}

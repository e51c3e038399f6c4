// Command tandemctl is the operator's command line over the gRPC API of tandemd.
//
// It keeps no state and makes no decision: every verb is one or a few calls to a
// daemon. Output is a table or JSON; exit codes are those of package rpcstatus and
// part of its contract. docs/reference/tandemctl.md is generated from the commands.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	code := newApp().run(ctx, os.Args[1:])
	stop()
	os.Exit(int(code))
}

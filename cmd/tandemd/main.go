// Command tandemd is the node daemon of Tandem: it keeps replicas on the node's
// disks, mirrors writes between cluster domains and shows volumes as block devices.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/cmd/internal/daemon"
	"github.com/tandem-storage/tandem/cmd/internal/logging"
)

// version is set by the build.
var version = "dev"

func main() { os.Exit(run()) }

// usage says how the program is called.
const usage = `tandemd [flags]          the daemon of a node
tandemd device [flags]   keeps the devices of this machine over restarts of the daemon (front end "device")
`

// run returns the exit code: 0 after an orderly end, 1 after a failure, 2 for a
// configuration that cannot be used.
func run() int {
	if code, is := daemon.Step(os.Args[1:]); is {
		return code
	}
	var f config.Flags
	file := flag.String("config", "", "configuration file (YAML); without one a single node on loopback starts")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.StringVar(&f.NodeID, "node-id", "", "name of this node, over nodeID of the file")
	flag.StringVar(&f.AdvertiseHost, "advertise-host", "", "host name or address that other nodes dial, with the port of peer.listen, over peer.advertise of the file")
	flag.BoolVar(&f.MemberIfListed, "member-if-listed", false, "be a member of the embedded kvdb only if kvdb.raft.members lists this node: for a file that many nodes share")
	flag.StringVar(&f.LogLevel, "log-level", "", "debug, info, warn or error, over log.level of the file")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	args, main := os.Args[1:], daemon.Run
	if len(args) > 0 && args[0] == "device" {
		args, main = args[1:], daemon.RunDevices
	}
	_ = flag.CommandLine.Parse(args) // which ends the program on an error
	if *showVersion {
		fmt.Fprintln(os.Stdout, "tandemd", version)
		return 0
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "tandemd: unexpected argument %q; see tandemd --help\n", flag.Arg(0))
		return 2
	}
	c, err := config.Load(*file, f)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tandemd:", err)
		return 2
	}
	lg, _, err := logging.New(c.Log, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tandemd:", err)
		return 2
	}
	if _, set := os.LookupEnv("GOMAXPROCS"); !set && runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := main(ctx, c, version, lg); err != nil {
		fmt.Fprintln(os.Stderr, "tandemd:", err)
		return 1
	}
	return 0
}

// minProcs is the least number of goroutines that may run at once, however few cores there are. Most
// of what this program does in the kernel (submitting to disks, sending on loopback) takes longer than the 20 us after which the runtime
// takes a processor away from a system call if somebody waits for it, and then there is none to come back to. With some to
// spare nobody waits.
const minProcs = 4

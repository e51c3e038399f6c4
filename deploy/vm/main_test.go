//go:build vm

package vm

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tandem-storage/tandem/deploy/lab"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of what is random; 0: another one each time, printed")
	roundsFlag = flag.Int("rounds", 4, "power cuts on XFS; a quarter as many on ext4")
	kernelFlag = flag.String("kernel", "", "directory with the unpacked package of Debian's cloud kernel")
	keepFlag   = flag.Bool("keep", false, "leave the directories of the clusters, with all logs, for a look")

	bin   string   // what TestMain built
	image string   // the initramfs, of the machines
	undo  lab.Undo // of the cluster that runs
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	lab.AdoptOrphans()
	dir, err := os.MkdirTemp("/var/tmp", "tandem-vm-build-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	go func() { // directories would stay
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		s := <-signals
		fmt.Fprintln(os.Stderr, s, undo.Run(), os.RemoveAll(dir))
		os.Exit(1)
	}()
	if err := build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build makes the programs under test, from this tree, and the image.
func build(ctx context.Context, dir string) error {
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	bin = filepath.Join(dir, "bin")
	_, err = lab.Run(ctx, "env", "CGO_ENABLED=0", "go", "-C", filepath.Join(here, "..", ".."), "build", "-ldflags", "-s -w", "-o", bin+"/",
		"./cmd/tandemd", "./cmd/tandemctl", "./deploy/vm/agent")
	if err != nil {
		return err
	}
	image = filepath.Join(dir, "initramfs")
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	defer f.Close()
	programs := map[string]string{"/init": filepath.Join(bin, "agent")}
	for _, p := range []string{"tandemd", "tandemctl"} {
		programs["/bin/"+p] = filepath.Join(bin, p)
	}
	return WriteImage(ctx, f, *kernelFlag, programs)
}

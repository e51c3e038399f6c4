package nemesis

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tandem-storage/tandem/deploy/lab"
)

var (
	seedFlag     = flag.Uint64("seed", 0, "seed of the plan; 0: another one each time, printed")
	cyclesFlag   = flag.Int("cycles", 0, "how many faults, one after the other; 0: the test is skipped")
	kvdbFlag     = flag.String("kvdb", "etcd", `"etcd" (a server in each site) or "raft" (embedded)`)
	faultFlag    = flag.String("fault", "", "only this one, in every cycle")
	failoverFlag = flag.Int("failover", half, "of the takeovers that arbiters can do, so many per cent are left to them; 0: no automatic failover at all")
	keepFlag     = flag.Bool("keep", false, "leave the directory of the cluster, with all logs and histories, for a look")

	undo lab.Undo
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	lab.AdoptOrphans()
	go func() { // mounts and loop devices would stay
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		s := <-signals
		fmt.Fprintln(os.Stderr, s, undo.Run())
		os.Exit(1)
	}()
	return m.Run()
}

// need skips the test where something is not to be had.
func need(t *testing.T) {
	t.Helper()
	if *cyclesFlag == 0 {
		t.Skip("no -cycles: make test-nemesis gives it")
	}
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	for _, d := range []string{"/dev/net/tun", "/dev/loop-control"} {
		if _, err := os.Stat(d); err != nil {
			t.Skip(err)
		}
	}
	for _, p := range []string{"ip", "nsenter", "mkfs.ext4", "losetup"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("no %s here (make deps installs it)", p)
		}
	}
	if _, err := lab.Run(t.Context(), python, "-c", "import nbd"); err != nil {
		t.Skip("no libnbd for Python (make deps installs python3-libnbd)")
	}
}

// directory makes the directory for everything, which goes with the test.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "tandem-nemesis-") // not below /tmp: it may be a tmpfs, which holds no pools
	if err != nil {
		t.Fatal(err)
	}
	undo.Add(dir, func() error {
		if *keepFlag {
			say("left in place: %s", dir)
			return nil
		}
		return os.RemoveAll(dir)
	})
	t.Cleanup(func() {
		if err := undo.Run(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// build makes the programs under test, from this tree.
func build(ctx context.Context, bin string) error {
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	top := filepath.Join(here, "..", "..")
	// Without cgo, as it is released.
	if _, err := lab.Run(ctx, "env", "CGO_ENABLED=0", "go", "-C", top, "build", "-o", bin+"/", "./cmd/tandemd", "./cmd/tandemctl"); err != nil {
		return err
	}
	_, err = lab.Run(ctx, "go", "-C", filepath.Join(top, "deploy", "etcd"), "build", "-o", filepath.Join(bin, "etcd"), ".")
	return err
}

// seeded returns the seed of the run.
func seeded() uint64 {
	if *seedFlag == 0 {
		*seedFlag = rand.Uint64N(1 << 32)
	}
	return *seedFlag
}

// say prints a line, now: a run takes minutes.
func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/deploy/lab"
)

var (
	seedFlag    = flag.Int64("seed", 0, "seed of what is random; 0: another one each time, printed")
	kvdbFlag    = flag.String("kvdb", "raft", "kvdb of the clusters of which the test chooses none: raft or etcd")
	volumesFlag = flag.Int("volumes", 16, "how many volumes TestStorm has")
	keepFlag    = flag.Bool("keep", false, "leave the directories of the clusters, with all logs, for a look")

	bin  string   // what TestMain built
	root string   // below which the clusters have their directories
	undo lab.Undo // of the shared cluster
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		if err := flag.Set("test.parallel", "4"); err != nil { // clusters beside each other: most of the time they wait
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	lab.AdoptOrphans()
	var err error
	// Not below /tmp: it may be a tmpfs, which holds no pools.
	if root, err = os.MkdirTemp("/var/tmp", "tandem-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if *keepFlag {
			fmt.Println("left in place:", root)
			return
		}
		release()
		_ = os.RemoveAll(root)
	}()
	bin = filepath.Join(root, "bin")
	if err := build(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := undo.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// release takes away what daemons left that were killed by a test that failed: loop devices and mounts below root.
func release() {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is right
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(data), root+"/") {
			_, _ = lab.Run(context.Background(), "losetup", "-d", "/dev/"+strings.Split(f, "/")[3])
		}
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], root+"/") {
			_, _ = lab.Run(context.Background(), "umount", "--lazy", f[4])
		}
	}
}

// build makes the programs under test, from this tree.
func build(ctx context.Context) error {
	if err := goBuild(ctx, bin+"/", "./cmd/tandemd", "./cmd/tandemctl"); err != nil {
		return err
	}
	_, err := lab.Run(ctx, "go", "-C", filepath.Join(top(), "deploy", "etcd"), "build", "-o", filepath.Join(bin, "etcd"), ".")
	return err
}

// goBuild has the go command write programs of this tree to a file or directory, without cgo, as they are released.
func goBuild(ctx context.Context, to string, args ...string) error {
	_, err := lab.Run(ctx, append([]string{"env", "CGO_ENABLED=0", "go", "-C", top(), "build", "-o", to}, args...)...)
	return err
}

// top is the directory of the module. Tests run in that of their package.
func top() string {
	here, err := os.Getwd()
	if err != nil {
		return err.Error() // and nothing is there
	}
	return filepath.Join(here, "..", "..")
}

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tandem-storage/tandem/deploy/lab"
)

var (
	seedFlag = flag.Int64("seed", 0, "seed of what is random; 0: another one each time, printed")
	keepFlag = flag.Bool("keep", false, "leave the directories of the clusters, with all logs, for a look")

	bin  string   // what TestMain built
	root string   // below which the clusters have their directories
	undo lab.Undo // of the shared cluster
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
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

// build makes the programs under test, from this tree.
func build(ctx context.Context) error {
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

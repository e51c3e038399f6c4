package fuseloop

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend"
)

const (
	childHangs = "FUSELOOP_TEST_HANGS" // what the child is at in the kernel when its device hangs
	childBare  = "FUSELOOP_TEST_BARE"  // without a helper, to see what the test is about
)

// TestChildOfSteps is not a test: it is the process that TestKilledInTheKernel kills.
func TestChildOfSteps(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("runs as a child of TestKilledInTheKernel only")
	}
	hang := blocktest.NewDelay(memory(64 * mib))
	o := Options{Dir: dir, Helper: helper}
	if os.Getenv(childBare) != "" {
		o.Helper = nil
	}
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		hang.WaitHeld(1)
		_, _ = os.Stdout.WriteString("hangs\n")
	}()
	switch os.Getenv(childHangs) {
	case stepBind:
		hang.Pause(blocktest.BeforeStart, func(r *block.Request) bool { return r.Op == block.OpFlush })
		_, err = f.Attach(t.Context(), "vol", hang)
	case stepRelease:
		var a frontend.Attachment
		if a, err = f.Attach(t.Context(), "vol", hang); err != nil {
			break
		}
		hang.Pause(blocktest.BeforeStart, func(r *block.Request) bool { return r.Op == block.OpWrite })
		_, _ = os.Stdout.WriteString(a.Path() + "\n")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the parent has written to it
		err = a.Detach(t.Context())
	}
	t.Fatal("nothing hung", err)
}

// TestKilledInTheKernel kills a process whose device hangs while it binds or releases its loop device. It ends, and the next one can take its place.
func TestKilledInTheKernel(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	for _, at := range []string{stepBind, stepRelease} {
		t.Run(at, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0], "-test.run=^TestChildOfSteps$")
			cmd.Env = append(os.Environ(), childDir+"="+dir, childHangs+"="+at)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			said := bufio.NewScanner(stdout)
			for said.Scan() && said.Text() != "hangs" {
				if strings.HasPrefix(said.Text(), "/dev/loop") {
					defer dirty(t, said.Text())()
					if _, err := io.WriteString(stdin, "\n"); err != nil {
						t.Fatal(err)
					}
				}
			}
			if said.Text() != "hangs" {
				t.Fatalf("it said %q: %v", said.Text(), cmd.Wait())
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				_ = cmd.Wait() // killed
				close(ended)
			}()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Error("a process that was killed waits for itself in the kernel")
				abort(t, filepath.Join(dir, "vol"))
				<-ended
			}
			f, err := New(Options{Dir: dir, Helper: helper})
			if err != nil {
				t.Fatal(err)
			}
			a := attach(t, f, "vol", memory(mib))
			detach(t, a)
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// dirty leaves blocks of a device in the page cache, and the device open: the last close would write them.
func dirty(t *testing.T, path string) (let func()) {
	t.Helper()
	hold, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "dd", "if=/dev/urandom", "of="+path, "bs=1M", "count=1", "status=none")
	return func() { _ = hold.Close() }
}

// abort ends the FUSE connection of a mount whose process cannot do it any more.
func abort(t *testing.T, mount string) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[4] == mount {
			_, minor, _ := strings.Cut(f[2], ":")
			if err := os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestNoStep(t *testing.T) {
	for _, args := range [][]string{nil, {"bind"}, {"bind", "/nowhere/at/all", "tag"}, {"release", "/dev/loop0"}, {"resize", "/dev/loop0", "tag", "/f", "x"}, {"unmount", "/a", "b"}} {
		if code := Step(args); code != 1 {
			t.Errorf("%q ends with %d", args, code)
		}
	}
}

// What a child is refused its parent is refused, and says so once.
func TestStepErrors(t *testing.T) {
	f := newFront(t)
	a := attach(t, f, "vol", memory(16*mib))
	open, err := os.Open(a.Path())
	if err != nil {
		t.Fatal(err)
	}
	err = f.steps.release(a.loop)
	if !errors.Is(err, errOpened) || !errors.Is(err, frontend.ErrBusy) || err.Error() != errOpened.Error() {
		t.Errorf("open: %v", err)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.steps.resize(a.loop, filepath.Join(a.mount, fileName), 32*mib); err == nil || !strings.Contains(err.Error(), "not 33554432") {
		t.Errorf("larger than its file: %v", err)
	}
	detach(t, a)
	f.steps.helper = []string{"/nowhere/at/all"}
	if _, err := f.Attach(t.Context(), "vol", memory(mib)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a program: %v", err)
	}
}

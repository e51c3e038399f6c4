package backing

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/internal/testseed"
)

// The child processes of these tests are this test binary with a role.
const (
	roleEnv   = "TANDEM_BACKING_ROLE"
	engineEnv = "TANDEM_BACKING_ENGINE"
	dirEnv    = "TANDEM_BACKING_DIR"
	lastEnv   = "TANDEM_BACKING_LAST" // number of the last write that is known to be done
)

func TestMain(m *testing.M) {
	role, dir := os.Getenv(roleEnv), os.Getenv(dirEnv)
	n, _ := strconv.Atoi(os.Getenv(engineEnv))
	var err error
	switch role {
	case "":
		os.Exit(m.Run())
	case "writer":
		err = childWriter(dir, Engine(n))
	case "creator":
		err = childCreator(dir)
	case "hanging":
		err = childHanging(dir, Engine(n))
	}
	fmt.Fprintln(os.Stderr, role, err)
	os.Exit(1)
}

// child starts a process with a role and returns its standard output. It is
// killed when the test ends.
func child(t *testing.T, role, dir string, e Engine) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role, dirEnv+"="+dir, engineEnv+"="+strconv.Itoa(int(e)))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it is dead already, unless the test failed
		_ = cmd.Wait()
	})
	return cmd, bufio.NewReader(out)
}

const killSlots = 64 // blocks of the writer, spread over several chunks

func slotOffset(i uint64) int64 {
	return int64(i%killSlots) * (4 * testChunk / killSlots)
}

// childWriter goes on to write block after block, each filled with its number, and says a
// number once that is stable.
func childWriter(dir string, e Engine) error {
	o := testOptions(dir)
	o.Engine = e
	p, err := OpenPool(o)
	if err != nil {
		return err
	}
	r, err := p.Open(testVolume, testReplica)
	if err != nil {
		return err
	}
	buf := block.NewBuffer(block.SectorSize)
	last, err := strconv.ParseUint(os.Getenv(lastEnv), 10, 64)
	if err != nil {
		return err
	}
	for i := last + 1; ; i++ {
		for j := 0; j < block.SectorSize; j += 8 {
			binary.LittleEndian.PutUint64(buf.Bytes()[j:], i)
		}
		if err := block.WriteAt(r, buf.Bytes(), slotOffset(i), block.FUA); err != nil {
			return err
		}
		if err := binary.Write(os.Stdout, binary.LittleEndian, i); err != nil {
			return err
		}
	}
}

// TestKilledWriter: a process that is killed loses no write that it has reported,
// and leaves no block half-written.
func TestKilledWriter(t *testing.T) {
	for _, e := range []Engine{EngineThreads, EngineURing} {
		t.Logf("%v", e)
		seed := testseed.Of(t)
		rng := rand.New(rand.NewPCG(seed, 0))
		dir := t.TempDir()
		p := openTestPool(t, dir, e)
		createTestReplica(t, p, 4*testChunk)
		p.Close()
		var last uint64
		for range 3 {
			t.Setenv(lastEnv, strconv.FormatUint(last, 10))
			cmd, out := child(t, "writer", dir, e)
			for range 1 + rng.IntN(200) {
				if err := binary.Read(out, binary.LittleEndian, &last); err != nil {
					t.Fatal(err)
				}
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			for more := true; more; {
				more = binary.Read(out, binary.LittleEndian, &last) == nil
			}
			_ = cmd.Wait()
			p, err := OpenPool(testOptions(dir))
			if err != nil {
				t.Fatal(err)
			}
			r := openTestReplica(t, p)
			if !r.Unclean() || r.Lossy() {
				t.Errorf("after a kill: unclean %v, lossy %v", r.Unclean(), r.Lossy())
			}
			checkSlots(t, r, last)
			r.Close()
			p.Close()
		}
	}
}

// checkSlots checks every block for a writer that has reported last.
func checkSlots(t *testing.T, r *Replica, last uint64) {
	t.Helper()
	buf := make([]byte, block.SectorSize)
	for s := uint64(0); s < killSlots && s <= last; s++ {
		want := last - (last-s)%killSlots // newest number up to last of this block; 0: none yet
		if err := block.ReadAt(r, buf, slotOffset(s)); err != nil {
			t.Fatal(err)
		}
		got := binary.LittleEndian.Uint64(buf)
		for j := 0; j < len(buf); j += 8 {
			if v := binary.LittleEndian.Uint64(buf[j:]); v != got {
				t.Fatalf("block %d is torn: %d and %d", s, got, v)
			}
		}
		if got != want && got != last+1 {
			t.Fatalf("block %d has write %d; %d was reported last, so it must have %d", s, got, last, want)
		}
	}
}

// childCreator makes and removes replicas for ever and says when it has one.
func childCreator(dir string) error {
	p, err := OpenPool(testOptions(dir))
	if err != nil {
		return err
	}
	for {
		id := newUUID()
		if err := p.Create(ReplicaSpec{Cluster: testCluster, Volume: id, Replica: id, Size: 1 << 20}); err != nil {
			return err
		}
		if _, err := os.Stdout.Write(id[:]); err != nil {
			return err
		}
		if id[0]&1 == 0 {
			if err := p.Remove(id, id); err != nil {
				return err
			}
		}
	}
}

// TestKilledCreator: whenever a process is killed, every replica there is can be
// opened, and one that was reported and not removed is there.
func TestKilledCreator(t *testing.T) {
	dir := t.TempDir()
	seed := testseed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	kept := make(map[[16]byte]bool)
	for range 4 {
		cmd, out := child(t, "creator", dir, EngineThreads)
		note := func() error {
			var id [16]byte
			_, err := io.ReadFull(out, id[:])
			if err == nil && id[0]&1 == 1 {
				kept[id] = true
			}
			return err
		}
		for range 1 + rng.IntN(5) {
			if err := note(); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for more := true; more; {
			more = note() == nil
		}
		_ = cmd.Wait()
		p, err := OpenPool(testOptions(dir))
		if err != nil {
			t.Fatal(err)
		}
		list, err := p.List()
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[[16]byte]bool)
		for _, e := range list {
			found[e.Replica] = true
			r, err := p.Open(e.Volume, e.Replica)
			if err != nil {
				t.Errorf("a replica cannot be opened: %v", err)
				continue
			}
			r.Close()
		}
		for id := range kept {
			if !found[id] {
				t.Errorf("replica %x was made and is gone", id)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// childHanging prepares blocks, says so, waits for a line, and then writes to all
// of them at once. With io_uring it closes the lock file first, so that only the
// ring holds it.
func childHanging(dir string, e Engine) error {
	o := testOptions(dir)
	o.Engine = e
	p, err := OpenPool(o)
	if err != nil {
		return err
	}
	r, err := p.Open(testVolume, testReplica)
	if err != nil {
		return err
	}
	if err := block.WriteAt(r, randomBytes(1, block.MaxIO), 0, block.FUA); err != nil {
		return err
	}
	if p.kind == EngineURing {
		p.lock.Close()
		r.lock.Close()
	}
	fmt.Fprintln(os.Stdout, "ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	var batch []*block.Request
	for i := range int64(16) {
		req := &result{Request: block.Request{Op: block.OpWrite, Off: i * 4096, Len: 4096, Data: randomBytes(2, 4096)}, err: make(chan error, 1)}
		req.By = req
		batch = append(batch, &req.Request)
	}
	r.Submit(batch)
	fmt.Fprintln(os.Stdout, "submitted")
	select {}
}

// TestLockOutlivesProcess: while I/O of a killed process is in the kernel, nobody
// gets the lock of its replica (I17).
//
// The pool lies on an image within another file system; freezing that one makes
// the writes hang below the block layer.
func TestLockOutlivesProcess(t *testing.T) {
	for _, e := range []Engine{EngineThreads, EngineURing} {
		t.Run(e.String(), func(t *testing.T) {
			outer := mountImage(t, "ext4", 128<<20)
			img := filepath.Join(outer, "inner")
			f, err := os.Create(img)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Fallocate(int(f.Fd()), 0, 0, 64<<20); err != nil {
				t.Fatal(err)
			}
			f.Close()
			run(t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", img)
			dir := mountFile(t, img, "ext4")
			p := openTestPool(t, dir, e)
			createTestReplica(t, p, 4<<20)
			p.Close()

			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), roleEnv+"=hanging", dirEnv+"="+dir, engineEnv+"="+strconv.Itoa(int(e)))
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			pipe, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			out := bufio.NewReader(pipe)
			expect(t, out, "ready\n")
			run(t, "fsfreeze", "-f", outer)
			var thawed atomic.Bool
			thaw := func() {
				if thawed.CompareAndSwap(false, true) {
					run(t, "fsfreeze", "-u", outer)
				}
			}
			defer func() { _ = cmd.Wait() }()
			defer thaw()
			if _, err := io.WriteString(in, "go\n"); err != nil {
				t.Fatal(err)
			}
			expect(t, out, "submitted\n")
			if e == EngineThreads { // the ring has taken the writes by now; threads may be on their way
				awaitThreads(t, cmd.Process.Pid, func(states string) bool { return strings.Contains(states, "D") })
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			k := key{testVolume, testReplica}
			lock, err := os.OpenFile(filepath.Join(dir, replicasDir, k.dirName(), lockFile), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Close()
			got := make(chan bool)
			go func() {
				err := unix.Flock(int(lock.Fd()), unix.LOCK_EX)
				got <- err == nil && thawed.Load()
			}()
			// Every thread that can end has ended: what is left waits for the disk (D) or
			// for the others (Z, X).
			awaitThreads(t, cmd.Process.Pid, func(states string) bool { return strings.Trim(states, "DZX") == "" })
			select {
			case <-got:
				t.Error("the lock was free while I/O was in flight")
				return
			default:
			}
			thaw()
			if !<-got {
				t.Error("the lock was free while I/O was in flight")
			}
		})
	}
}

func expect(t *testing.T, out *bufio.Reader, want string) {
	t.Helper()
	if got, err := out.ReadString('\n'); got != want {
		t.Fatalf("the child said %q, not %q (%v)", got, want, err)
	}
}

// awaitThreads waits until the states of a process's threads, a letter each as in
// /proc/<pid>/stat, are as wanted.
func awaitThreads(t *testing.T, pid int, want func(states string) bool) {
	t.Helper()
	for {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		states := ""
		for _, s := range stats {
			if b, err := os.ReadFile(s); err == nil { // else it has ended just now
				_, rest, _ := strings.Cut(string(b), ") ")
				states += rest[:1]
			}
		}
		if want(states) {
			return
		}
	}
}

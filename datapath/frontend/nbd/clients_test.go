package nbd

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

// The clients here are programs that nobody of this project wrote.

// run runs a program to its end and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	t.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin") // the system's python has libnbd, another might not
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = t.TempDir()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

// onDevices runs f against devices that complete within Submit and elsewhere.
func onDevices(t *testing.T, f func(t *testing.T, d block.Device)) {
	t.Run("sync", func(t *testing.T) { f(t, newMem(false)) })
	t.Run("async", func(t *testing.T) { f(t, newMem(true)) })
}

func TestLibnbd(t *testing.T) {
	script, err := filepath.Abs("testdata/libnbd.py")
	if err != nil {
		t.Fatal(err)
	}
	for _, blockSize := range []int{512, 4096} {
		for _, async := range []bool{false, true} {
			t.Run(strconv.Itoa(blockSize)+"/async="+strconv.FormatBool(async), func(t *testing.T) {
				s := startServer(t)
				d := blocktest.NewMem(blocktest.MemOptions{Size: testSize, BlockSize: blockSize, Async: async, Seed: 1})
				a := attach(t, s, "vol", d)
				run(t, "python3", script, a.Path(), strconv.Itoa(testSize), strconv.Itoa(blockSize))
			})
		}
	}
}

func TestRequestsReachDevice(t *testing.T) {
	s := startServer(t)
	rec := blocktest.NewRecord(newMem(false))
	a := attach(t, s, "vol", rec)
	run(t, "nbdsh", "-u", a.Path(), "-c", `
h.pwrite(b'x'*8192, 4096, nbd.CMD_FLAG_FUA)
h.flush()
h.trim(8192, 65536)
h.trim(4096, 131072, nbd.CMD_FLAG_FUA)
h.zero(4096, 4096)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
h.pread(4096, 0)
`)
	var got []string
	for _, e := range rec.History() {
		if !e.Done {
			_, what, _ := strings.Cut(e.String(), " ")
			got = append(got, what)
		}
	}
	want := []string{
		"write 4096+8192 fua", "flush", "discard 65536+8192", "discard 131072+4096 fua",
		"write-zeroes 4096+4096", "write-zeroes 8192+4096 no-hole", "read 0+4096",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the device got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestNbdinfo(t *testing.T) {
	s := startServer(t)
	a := attach(t, s, "vol", newMem(false))
	attach(t, s, "other name", newMem(false))

	var info struct {
		Protocol   string `json:"protocol"`
		TLS        bool   `json:"TLS"`
		Structured bool   `json:"structured"`
		Exports    []struct {
			Name     string   `json:"export-name"`
			Contexts []string `json:"contexts"`
			Size     int64    `json:"export-size"`
			Min      int      `json:"block_size_minimum"`
			Flush    bool     `json:"can_flush"`
			Multi    bool     `json:"can_multi_conn"`
		} `json:"exports"`
	}
	list := strings.Replace(a.Path(), "/vol", "/", 1)
	out := run(t, "nbdinfo", "--json", "--list", list)
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if info.Protocol != "newstyle-fixed" || info.TLS || !info.Structured || len(info.Exports) != 2 {
		t.Fatalf("nbdinfo says\n%s", out)
	}
	for i, name := range []string{"other name", "vol"} {
		e := info.Exports[i]
		if e.Name != name || e.Size != testSize || e.Min != 4096 || !e.Flush || !e.Multi ||
			len(e.Contexts) != 1 || e.Contexts[0] != contextAllocation {
			t.Errorf("nbdinfo says of export %d\n%s", i, out)
		}
	}

	out = run(t, "nbdinfo", "--map", "--json", a.Path())
	var extents []struct {
		Offset, Length int64
		Type           int
	}
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(extents) != 1 || extents[0].Offset != 0 || extents[0].Length != testSize || extents[0].Type != 0 {
		t.Errorf("the map is %s, want one extent of data", out)
	}
}

// randomFile makes a file of the devices' size with data in it.
func randomFile(t *testing.T) (path string, data []byte) {
	t.Helper()
	const seed = 42
	data = make([]byte, testSize)
	rng := rand.NewChaCha8([32]byte{seed})
	for off := 0; off < len(data); off += 8 << 20 {
		_, _ = rng.Read(data[off : off+5<<20]) // and zeroes between
	}
	path = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

func TestNbdcopy(t *testing.T) {
	image, data := randomFile(t)
	onDevices(t, func(t *testing.T, d block.Device) {
		s := startServer(t)
		a := attach(t, s, "vol", d)
		run(t, "nbdcopy", "--flush", image, a.Path())
		got := make([]byte, testSize)
		if err := block.ReadAt(d, got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Fatal("the device differs from what was copied to it")
		}
		back := filepath.Join(t.TempDir(), "back")
		run(t, "nbdcopy", "--connections=4", a.Path(), back)
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("the copy differs from the device; error %v", err)
		}
	})
}

func TestQemu(t *testing.T) {
	image, data := randomFile(t)
	onDevices(t, func(t *testing.T, d block.Device) {
		s := startServer(t)
		a := attach(t, s, "vol", d)
		run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, a.Path())
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, a.Path())
		got := make([]byte, testSize)
		if err := block.ReadAt(d, got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Fatal("the device differs from what was copied to it")
		}
		out := run(t, "qemu-io", "-f", "raw",
			"-c", "write -P 0x5a 1M 3M", "-c", "read -P 0x5a 1M 3M", "-c", "write -f -P 0x5b 2M 4k", "-c", "flush",
			"-c", "discard 1M 1M", "-c", "write -z 3M 512k", "-c", "write -z -u 3584k 64k",
			"-c", "read -P 0 3M 576k", "-c", "read -P 0x5b 2M 4k",
			"-c", "aio_write -P 1 16M 256k", "-c", "aio_write -P 2 17M 256k", "-c", "aio_flush", "-c", "read -P 2 17M 256k",
			a.Path())
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("qemu-io says\n%s", out)
		}
	})
}

func TestFio(t *testing.T) {
	onDevices(t, func(t *testing.T, d block.Device) {
		s := startServer(t)
		a := attach(t, s, "vol", d)
		run(t, "fio", "--ioengine=nbd", "--uri="+a.Path(), "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=7",
			"--fsync=64", "--group_reporting",
			"--name=small", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16M",
			"--name=mixed", "--rw=randrw", "--bsrange=4k-256k", "--blockalign=4k", "--iodepth=16", "--offset=16M", "--size=32M")
	})
}

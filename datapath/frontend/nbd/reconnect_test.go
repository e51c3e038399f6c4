package nbd

import (
	"bufio"
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

// qemu is a client that connects again by itself: qemu-io on one open image, which takes commands one by one.
type qemu struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

// openQemu opens an export. For reconnect seconds after a lost connection requests wait for the next one.
func openQemu(t *testing.T, socket, export, reconnect string) *qemu {
	t.Helper()
	path, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("qemu-io is not installed")
	}
	cmd := exec.CommandContext(t.Context(), path, "--image-opts",
		"driver=nbd,server.type=unix,server.path="+socket+",export="+export+",reconnect-delay="+reconnect)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("qemu-io says: %s", stderr.Bytes())
		}
	})
	return &qemu{t: t, in: in, out: bufio.NewReader(out)}
}

// do runs a command and returns the line in which qemu-io tells what came of it.
func (q *qemu) do(command string) string {
	q.t.Helper()
	if _, err := io.WriteString(q.in, command+"\n"); err != nil {
		q.t.Fatal(err)
	}
	for {
		line, err := q.out.ReadString('\n')
		if err != nil {
			q.t.Fatalf("%s: %v", command, err)
		}
		if _, tail, ok := strings.Cut(line, "qemu-io> "); ok {
			line = tail
		}
		if strings.Contains(line, "wrote") || strings.Contains(line, "read") || strings.Contains(line, "failed") {
			return line
		}
	}
}

// TestReconnect is a client that has been told of a write and connects again by itself. After a restart
// of the server it goes on under the name that it had. After a kill it gets nothing but
// errors, though the volume is attached again: what is attached now may be older than what it was told.
func TestReconnect(t *testing.T) {
	t.Run("restart", func(t *testing.T) {
		socket := socketPath(t)
		d := newMem(false)
		s, err := Listen(Options{Endpoints: []Endpoint{{Network: "unix", Address: socket}}, Logger: zaptest.NewLogger(t)})
		if err != nil {
			t.Fatal(err)
		}
		attach(t, s, "vol.1", d)
		q := openQemu(t, socket, "vol.1", "60")
		if got := q.do("write -P 0x5a 0 4096"); !strings.Contains(got, "wrote 4096/4096") {
			t.Fatal(got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		attach(t, startServer(t, Endpoint{Network: "unix", Address: socket}), "vol.1", d)
		if got := q.do("read -P 0x5a 0 4096"); !strings.Contains(got, "read 4096/4096") {
			t.Error(got)
		}
	})
	t.Run("kill", func(t *testing.T) {
		socket := socketPath(t)
		s := startServer(t, Endpoint{Network: "unix", Address: socket})
		a := attach(t, s, "vol.1", newMem(false))
		q := openQemu(t, socket, "vol.1", "3")
		if got := q.do("write -P 0x5a 0 4096"); !strings.Contains(got, "wrote 4096/4096") {
			t.Fatal(got)
		}
		a.Kill()
		rec := blocktest.NewRecord(newMem(false)) // lacks the write
		attach(t, s, "vol.2", rec)
		for _, command := range []string{"read -P 0x5a 0 4096", "read 0 4096", "write -P 0x5b 4096 4096"} {
			if got := q.do(command); !strings.Contains(got, "failed: Input/output error") {
				t.Errorf("%s: %s", command, got)
			}
		}
		if n := len(rec.History()); n != 0 {
			t.Errorf("%d requests of the client reached another attachment", n)
		}
	})
}

package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend"
)

const testSize = 64 << 20

// startServer runs a server for the length of the test, by default on a unix socket.
func startServer(t testing.TB, endpoints ...Endpoint) *Server {
	t.Helper()
	if len(endpoints) == 0 {
		endpoints = []Endpoint{{Network: "unix", Address: socketPath(t)}}
	}
	s, err := Listen(Options{Endpoints: endpoints, Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	s.detachGrace = 20 * time.Second // on a busy machine it may take a while to notice that a client is gone
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// socketPath is short enough for a socket, unlike t.TempDir of a long test's name.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.TempDir(), "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "sock")
}

func attach(t testing.TB, s *Server, id string, d block.Device) frontend.Attachment {
	t.Helper()
	a, err := s.Attach(t.Context(), id, d)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newMem(async bool) *blocktest.Mem {
	return blocktest.NewMem(blocktest.MemOptions{Size: testSize, Async: async, Seed: 1})
}

func TestAttach(t *testing.T) {
	s := startServer(t)
	d := newMem(false)
	a := attach(t, s, "vol", d)
	if again := attach(t, s, "vol", d); again != a {
		t.Error("a second attach of the same device gave another attachment")
	}
	if _, err := s.Attach(t.Context(), "vol", newMem(false)); !errors.Is(err, frontend.ErrBusy) {
		t.Errorf("attach of another device under the same id: %v, want ErrBusy", err)
	}
	for _, id := range []string{"", ".", "..", "a/b", "a\x00b", strings.Repeat("x", 256)} {
		if _, err := s.Attach(t.Context(), id, d); err == nil {
			t.Errorf("attach as %q succeeded", id)
		}
	}
	big := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20, BlockSize: 1 << 17})
	if _, err := s.Attach(t.Context(), "big", big); err == nil {
		t.Error("attach of a device with blocks of 128 KiB succeeded, the protocol allows 64 KiB")
	}
	want := "nbd+unix:///vol?socket=" + s.Addr(0).String()
	if a.Path() != want {
		t.Errorf("path is %s, want %s", a.Path(), want)
	}
}

func TestDetach(t *testing.T) {
	s := startServer(t)
	a := attach(t, s, "vol", newMem(false))
	c := dial(t, s)
	c.goExport("vol")
	s.detachGrace = 0
	if err := a.Detach(t.Context()); !errors.Is(err, frontend.ErrBusy) {
		t.Fatalf("detach with a client: %v, want ErrBusy", err)
	}
	s.detachGrace = 20 * time.Second
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Detach(gone); !errors.Is(err, context.Canceled) {
		t.Fatalf("detach with a context that is over: %v", err)
	}
	c.request(cmdRead, 0, 0, 4096, nil)
	c.wantRead(4096) // nothing was changed
	c.request(cmdDisc, 0, 0, 0, nil)
	if err := a.Detach(t.Context()); err != nil {
		t.Fatalf("detach while the client leaves: %v", err)
	}
	if err := a.Detach(t.Context()); err != nil {
		t.Fatalf("second detach: %v", err)
	}
	<-a.Done()
	if err := a.Err(); err != nil {
		t.Errorf("after detach Err is %v", err)
	}
	c = dial(t, s)
	if got := c.option(optGo, infoData("vol")); got != repErrUnknown {
		t.Errorf("go after detach: reply %#x, want %#x", got, uint32(repErrUnknown))
	}
	attach(t, s, "vol", newMem(false)) // the id is free again
}

func TestKill(t *testing.T) {
	s := startServer(t)
	held := blocktest.NewDelay(newMem(false))
	held.Pause(blocktest.BeforeStart, nil)
	a := attach(t, s, "vol", held)
	c := dial(t, s)
	c.goExport("vol")
	c.request(cmdRead, 0, 0, 4096, nil)
	held.WaitHeld(1)
	a.Kill()
	<-a.Done()
	if err := a.Err(); !errors.Is(err, ErrKilled) {
		t.Errorf("after kill Err is %v", err)
	}
	c.wantEOF()
	c = dial(t, s)
	if got := c.option(optGo, infoData("vol")); got != repErrUnknown {
		t.Errorf("go after kill: reply %#x, want %#x", got, uint32(repErrUnknown))
	}
	if err := a.Detach(t.Context()); err != nil {
		t.Errorf("detach after kill: %v", err)
	}
	held.Resume()
}

// TestKillSubmitsNoMore checks that what the server had not submitted when it was killed never reaches the device.
func TestKillSubmitsNoMore(t *testing.T) {
	s := startServer(t)
	rec := blocktest.NewRecord(newMem(false))
	held := blocktest.NewDelay(rec)
	held.Pause(blocktest.BeforeCompletion, nil)
	a := attach(t, s, "vol", held)
	c := dial(t, s)
	c.goExport("vol")
	var b []byte
	for range defaultRequests + 10 {
		b = appendRequest(b, header{cmd: cmdTrim, n: 4096})
	}
	c.write(b)
	held.WaitHeld(defaultRequests)
	a.Kill()
	c.wantEOF()
	held.Resume()
	if err := s.Close(); err != nil { // waits for the connection's end
		t.Fatal(err)
	}
	if n := rec.Completed(block.OpDiscard); n != defaultRequests {
		t.Errorf("%d requests reached the device, want the %d of before the kill", n, defaultRequests)
	}
}

func TestCloseRepliesFirst(t *testing.T) {
	s := startServer(t)
	held := blocktest.NewDelay(newMem(false))
	held.Pause(blocktest.BeforeStart, nil)
	a := attach(t, s, "vol", held)
	c := dial(t, s)
	c.goExport("vol")
	c.request(cmdWrite, 0, 0, 4096, bytes.Repeat([]byte{7}, 4096))
	held.WaitHeld(1)
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	for {
		if _, err := s.Attach(context.Background(), "other", held); errors.Is(err, ErrClosed) {
			break
		}
	}
	held.Resume()
	c.wantSimple(0)
	c.wantEOF()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	<-a.Done()
}

func TestListenErrors(t *testing.T) {
	path := socketPath(t)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]Endpoint{
		"a file in the way": {Network: "unix", Address: path},
		"no such network":   {Network: "carrier-pigeon", Address: "coop"},
		"no such address":   {Network: "tcp", Address: "192.0.2.1:1"},
		"no directory":      {Network: "unix", Address: path + "/sub/sock"},
		"tls without tls":   {Network: "tcp", Address: "127.0.0.1:0", RequireTLS: true},
	} {
		if s, err := Listen(Options{Endpoints: []Endpoint{e}}); err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Listen(Options{}); err == nil {
		t.Error("no endpoint: no error")
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file in the way is gone: %v", err)
	}
}

func TestUnixSocket(t *testing.T) {
	e := Endpoint{Network: "unix", Address: socketPath(t)}
	s := startServer(t, e)
	i, err := os.Stat(e.Address)
	if err != nil {
		t.Fatal(err)
	}
	if i.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket is %v, want 0600", i.Mode().Perm())
	}
	if _, err := Listen(Options{Endpoints: []Endpoint{e}}); err == nil {
		t.Error("a second server took the socket of a living one")
	}
	// A dead server's socket stays behind.
	s.listeners[0].Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	s.Close()
	if _, err := os.Stat(e.Address); err != nil {
		t.Fatal(err)
	}
	startServer(t, e)
}

func TestHandshakeDeadline(t *testing.T) {
	s := startServer(t)
	attach(t, s, "vol", newMem(false))
	s.mu.Lock()
	s.handshakeTimeout = 20 * time.Millisecond
	s.mu.Unlock()
	c := connect(t, s)
	// Nothing is wrong but the silence.
	if _, err := io.ReadAll(c.conn); err != nil {
		t.Errorf("a client that says nothing: %v, want the end of the connection", err)
	}
}

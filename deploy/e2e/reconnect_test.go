package e2e

import (
	"bufio"
	"io"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestReconnectingClient is an NBD client that connects again by itself, for as long as it takes. Its node's daemon
// dies, the volume is attached on another node, written there, and attached again where the client is: the
// volume has moved on since that client was told anything, so it gets errors and changes nothing.
func TestReconnectingClient(t *testing.T) {
	need(t, "qemu-io")
	c := own(t, nil)
	v := c.create(t, "reconnect", "64Mi")
	old := c.attach(t, v.home, v.name)
	do, _ := returning(t, old)
	if got := do("write -P 1 0 64k"); !strings.Contains(got, "wrote") {
		t.Fatal(got)
	}
	if err := c.Node(v.home).Kill(); err != nil {
		t.Fatal(err)
	}
	uri := c.attach(t, v.spare, v.name)
	sh(t, "qemu-io", "-f", "raw", "-c", "read -P 1 0 64k", "-c", "write -P 2 0 64k", "-c", "flush", uri)
	if err := c.StartNode(c.Node(v.home)); err != nil {
		t.Fatal(err)
	}
	c.inSync(t, v.spare, v.name, time.Minute, v.home, v.away)
	c.detach(t, v.spare, v.name)
	uri = c.attach(t, v.home, v.name)
	if uri == old {
		t.Errorf("two attachments are shown as %s", uri)
	}
	for _, command := range []string{"read 0 64k", "write -P 1 0 64k"} {
		if got := do(command); !strings.Contains(got, "failed: Input/output error") {
			t.Errorf("%s of a client of an earlier attachment: %s", command, got)
		}
	}
	if out := sh(t, "qemu-io", "-f", "raw", "-c", "read -P 2 0 64k", uri); strings.Contains(out, "failed") {
		t.Errorf("a new client: %s", out)
	}
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// returning opens an export with a qemu-io that tries for 30 s to connect again when its connection is lost, before a request
// fails. do runs one command and returns the line in which it tells what came of it; end ends it.
func returning(t *testing.T, uri string) (do func(command string) string, end func()) {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "qemu-io", "--image-opts", "driver=nbd,server.type=unix,server.path="+u.Query().Get("socket")+
		",export="+strings.TrimPrefix(u.Path, "/")+",reconnect-delay=30")
	in, err := cmd.StdinPipe()
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
	end = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	out := bufio.NewReader(stdout)
	do = func(command string) string {
		t.Helper()
		if _, err := io.WriteString(in, command+"\n"); err != nil {
			t.Fatal(err)
		}
		for {
			line, err := out.ReadString('\n')
			if err != nil {
				t.Fatalf("%s: %v", command, err)
			}
			line = line[strings.LastIndex(line, "> ")+1:] // past the prompt
			if strings.Contains(line, "wrote") || strings.Contains(line, "read") || strings.Contains(line, "failed") {
				return line
			}
		}
	}
	return do, end
}

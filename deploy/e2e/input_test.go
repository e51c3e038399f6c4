package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestBadRequests asks for what cannot be: each gets one error that names the thing, its exit code, and changes nothing.
func TestBadRequests(t *testing.T) {
	c := shared(t)
	v := c.create(t, "taken", "64Mi")
	c.attach(t, v.home, v.name)
	before := c.ctl(t, "b1", "volume", "list", "-o", "json")
	const usage, notFound, precondition, exists, conflict = 2, 3, 4, 6, 7
	for _, tc := range []struct {
		name string
		node string
		exit int
		says []string
		args []string
	}{
		{"size zero", "a1", usage, []string{"--size", "0"}, []string{"volume", "create", "x", "--size", "0"}},
		{"negative size", "a1", usage, []string{"--size", "-1Mi"}, []string{"volume", "create", "x", "--size", "-1Mi"}},
		{"no size", "a1", usage, []string{"size"}, []string{"volume", "create", "x"}},
		{"a size without a unit", "a1", usage, []string{"--size", "5000", "unit"}, []string{"volume", "create", "x", "--size", "5000"}},
		{"not a multiple of the block", "a1", usage, []string{"4096"}, []string{"volume", "create", "x", "--size", "5Ki"}},
		{"above the pool", "a1", usage, []string{"largest pool"}, []string{"volume", "create", "x", "--size", "64Ti"}},
		{"size beyond numbers", "a1", usage, []string{"--size"}, []string{"volume", "create", "x", "--size", "99999999999Ti"}},
		{"unknown domain", "a1", notFound, []string{"mars"}, []string{"volume", "create", "x", "--size", "64Mi", "--domains", "mars"}},
		{"a witness's domain", "a1", notFound, []string{"gamma"}, []string{"volume", "create", "x", "--size", "64Mi", "--domains", "gamma"}},
		{"more replicas than nodes", "a1", precondition, []string{"3 replicas", "2 can"}, []string{"volume", "create", "x", "--size", "64Mi", "--replicas", "3", "--domains", "alpha"}},
		{"more replicas than are possible", "a1", usage, []string{"4", "3"}, []string{"volume", "create", "x", "--size", "64Mi", "--replicas", "4"}},
		{"unknown protection", "a1", usage, []string{"most"}, []string{"volume", "create", "x", "--size", "64Mi", "--protection", "most"}},
		{"name with a slash", "a1", usage, []string{"a/b"}, []string{"volume", "create", "a/b", "--size", "64Mi"}},
		{"empty name", "a1", usage, []string{"NAME"}, []string{"volume", "create", "", "--size", "64Mi"}},
		{"very long name", "a1", usage, []string{"name"}, []string{"volume", "create", strings.Repeat("n", 5000), "--size", "64Mi"}},
		{"name taken, other size", "a1", exists, []string{"taken", v.name}, []string{"volume", "create", v.name, "--size", "128Mi", "--replicas", "2"}},
		{"name taken, other replicas", "b1", exists, []string{v.name}, []string{"volume", "create", v.name, "--size", "64Mi", "--replicas", "1"}},
		{"inspect of nothing", "a1", notFound, []string{"nothing"}, []string{"volume", "inspect", "nothing"}},
		{"attach of nothing", "a1", notFound, []string{"nothing"}, []string{"host", "attach", "nothing"}},
		{"detach of nothing", "a1", notFound, []string{"nothing"}, []string{"host", "detach", "nothing"}},
		{"attach elsewhere", v.away, precondition, []string{v.name, v.home}, []string{"host", "attach", v.name}},
		{"attach on another node of the domain", v.spare, precondition, []string{v.name, v.home}, []string{"host", "attach", v.name}},
		{"detach elsewhere", v.away, precondition, []string{v.name, v.home}, []string{"host", "detach", v.name}},
		{"another front end", v.home, precondition, []string{"nbd"}, []string{"host", "attach", v.name, "--frontend", "fuseloop"}},
		{"unknown front end", v.home, usage, []string{"iscsi"}, []string{"host", "attach", v.name, "--frontend", "iscsi"}},
		{"delete while attached", "a1", precondition, []string{v.name, v.home}, []string{"volume", "delete", v.name, "--yes"}},
		{"delete without a person to ask", "a1", usage, []string{"--yes"}, []string{"volume", "delete", v.name}},
		{"deactivate an unknown domain", "a1", notFound, []string{"mars"}, []string{"cluster", "domains", "deactivate", "--name", "mars"}},
		{"activate an unknown domain", "a1", notFound, []string{"mars"}, []string{"cluster", "domains", "activate", "--name", "mars"}},
		{"deactivate with a wrong epoch", "a1", conflict, []string{alpha, "999"}, []string{"cluster", "domains", "deactivate", "--name", alpha, "--expect-epoch", "999"}},
		{"accept the loss of an unknown volume", "a1", notFound, []string{"nothing"}, []string{"cluster", "domains", "deactivate", "--name", alpha, "--peer-lost", "--yes", "--accept-data-loss", "nothing"}},
		{"unknown command", "a1", usage, []string{"explode"}, []string{"volume", "explode"}},
		{"unknown flag", "a1", usage, []string{"--fast"}, []string{"volume", "list", "--fast"}},
		{"two names", "a1", usage, []string{"more"}, []string{"volume", "inspect", v.name, "more"}},
	} {
		t.Run(tc.name, func(t *testing.T) { c.refused(t, tc.node, tc.exit, tc.says, tc.args...) })
	}
	if w := c.third(""); w != "" {
		t.Run("attach on a witness", func(t *testing.T) {
			c.refused(t, w, precondition, []string{"witness"}, "host", "attach", v.name, "--frontend", "nbd")
		})
	}
	if after := c.ctl(t, "b1", "volume", "list", "-o", "json"); after != before {
		t.Errorf("refused requests changed something:\nbefore: %s\nafter:  %s", before, after)
	}
	t.Run("the same again", func(t *testing.T) {
		id := c.inspect(t, "b1", v.name).Volume.ID
		if out := c.ctl(t, "a2", "volume", "create", v.name, "--size", "64Mi", "--replicas", "2"); !strings.Contains(out, id) {
			t.Errorf("creating %s again printed %q, want its id %s", v.name, out, id)
		}
		c.ctl(t, "a1", "volume", "delete", "nothing", "--yes")
		c.detach(t, v.home, v.name)
		c.detach(t, v.home, v.name)
	})
}

// TestGarbageOnSockets throws bytes at every listening socket. The daemons go on serving.
func TestGarbageOnSockets(t *testing.T) {
	c := shared(t)
	v := c.create(t, "hostile", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	random := make([]byte, 70000)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	hello := clientHello(t)
	payloads := map[string][]byte{
		"random":          random,
		"http":            []byte("GET / HTTP/1.1\r\nHost: tandem\r\n\r\n"),
		"http/2":          []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff\xff\x01\x05\x00\x00\x00\x00"),
		"tls":             hello,
		"half a tls":      hello[:len(hello)/2],
		"nothing":         nil,
		"nbd, no option":  []byte("\x00\x00\x00\x03IHAVEOPT\xff\xff\xff\xff\xff\xff\xff\xff"),
		"zeroes":          make([]byte, 70000),
		"very long lines": bytes.Repeat([]byte("A"), 1<<20),
	}
	home := c.Node(v.home)
	type listener struct{ name, network, addr string }
	listeners := []listener{
		{"peer port", "tcp", home.PeerAddr()},
		{"operators' socket", "unix", home.Socket},
		{"nbd socket", "unix", filepath.Join(filepath.Dir(home.Socket), "nbd.sock")},
	}
	if *kvdbFlag == "raft" {
		member := c.Node("a3")
		listeners = append(listeners, listener{"peer port of a witness", "tcp", member.PeerAddr()}, listener{"raft port", "tcp", member.RaftAddr()})
	}
	for _, s := range listeners {
		t.Run(s.name, func(t *testing.T) {
			var wg sync.WaitGroup
			for name, p := range payloads {
				wg.Go(func() {
					for range 3 {
						conn, err := net.DialTimeout(s.network, s.addr, 5*time.Second)
						if err != nil {
							t.Errorf("%s: the socket does not listen any more: %v", name, err)
							return
						}
						_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
						_, _ = conn.Write(p)                                    // the other end may hang up
						_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<16)) // or wait for more
						_ = conn.Close()
					}
				})
			}
			wg.Wait()
		})
	}
	w.more(t, 100, 10*time.Second)
	if err := c.Died(); err != nil {
		t.Fatal(err)
	}
	c.ctl(t, v.home, "status")
	c.ctl(t, c.third(v.away), "status")
	c.inSync(t, v.home, v.name, 20*time.Second, v.home, v.away)
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// clientHello is the first flight of a TLS client.
func clientHello(t *testing.T) []byte {
	t.Helper()
	a, b := net.Pipe()
	go func() {
		_ = tls.Client(a, &tls.Config{InsecureSkipVerify: true}).Handshake()
		_ = a.Close()
	}()
	buf := make([]byte, 4096)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	return buf[:n]
}

// TestStrangers starts daemons that do not belong where they are started. Each ends with one clear error, and
// the cluster does not notice.
func TestStrangers(t *testing.T) {
	c := shared(t)
	n := c.Node("a2")
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(n.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	other := c.Node("b2")
	for _, tc := range []struct {
		name    string
		replace []string // pairs
		exit    int
		says    []string
	}{
		{"an unknown key", []string{`"clusterName"`, `"colour": "red", "clusterName"`}, 2, []string{"colour"}},
		{"no YAML", []string{`{`, `{{{{`}, 2, []string{"tandemd.yaml"}},
		{"a wrong unit", []string{`"kind": "Config"`, `"kind": "Config", "replication": {"suspectTimeout": "3 parsec"}`}, 2, []string{"suspectTimeout", "3 parsec"}},
		{"timers that contradict", []string{`"kind": "Config"`, `"kind": "Config", "replication": {"suspectTimeout": "500ms"}`}, 2, []string{"suspectTimeout"}},
		{"another node's name", []string{`"nodeID": "a2"`, `"nodeID": "zz"`}, 1, []string{"zz", "a2", "certificate"}},
		{"another domain", []string{`"domain": "alpha"`, `"domain": "beta"`}, 1, []string{"alpha", "beta", "certificate"}},
		{"another cluster's name", []string{`"clusterName": "lab"`, `"clusterName": "prod"`}, 1, []string{"prod", "lab"}},
		{"no such certificate", []string{"node.crt", "gone.crt"}, 1, []string{"gone.crt"}},
		{"another's key", []string{filepath.Join(n.Dir, "pki", "node.key"), filepath.Join(other.Dir, "pki", "node.key")}, 1, []string{"private key"}},
		{"a port in use", []string{n.PeerAddr(), other.PeerAddr()}, 1, []string{"peer.listen", other.PeerAddr(), "in use"}},
		{"another's data directory", []string{filepath.Join(n.Dir, "data"), filepath.Join(other.Dir, "data")}, 1, []string{other.Pool()}},
		{"another's run directory", []string{filepath.Join(n.Dir, "run"), filepath.Join(other.Dir, "run")}, 1, []string{filepath.Join(other.Dir, "run")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			changed := strings.NewReplacer(tc.replace...).Replace(string(text))
			if changed == string(text) {
				t.Fatalf("nothing to replace in %s", text)
			}
			ends(t, changed, tc.exit, tc.says)
		})
	}
	if err := c.Died(); err != nil {
		t.Error(err)
	}

	t.Run("two on the same directories", func(t *testing.T) {
		text, err := os.ReadFile(other.ConfigFile())
		if err != nil {
			t.Fatal(err)
		}
		free := freePort(t)
		ends(t, strings.ReplaceAll(string(text), other.PeerAddr(), free), 1, []string{other.Dir})
		c.ctl(t, "b2", "status")
	})

	t.Run("a pool copied from another node", func(t *testing.T) {
		aside := n.Pool() + ".aside"
		if err := os.Rename(n.Pool(), aside); err != nil {
			t.Fatal(err)
		}
		sh(t, "cp", "-a", other.Pool(), n.Pool())
		ends(t, string(text), 1, []string{n.Pool(), "b2"})
		if err := errors.Join(os.RemoveAll(n.Pool()), os.Rename(aside, n.Pool())); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("a certificate of another authority", func(t *testing.T) {
		dir := t.TempDir()
		ctl := filepath.Join(bin, "tandemctl")
		for _, cluster := range []string{"lab", "prod"} {
			sh(t, ctl, "pki", "create-ca", "--cluster", cluster, "--dir", filepath.Join(dir, cluster))
			sh(t, ctl, "pki", "issue", "--ca-dir", filepath.Join(dir, cluster), "--domain", alpha, "--node", "a2", "--out", filepath.Join(dir, cluster, "a2"))
			pair, err := tls.LoadX509KeyPair(filepath.Join(dir, cluster, "a2", "node.crt"), filepath.Join(dir, cluster, "a2", "node.key"))
			if err != nil {
				t.Fatal(err)
			}
			addrs := []string{c.Node("b2").PeerAddr()}
			if *kvdbFlag == "raft" {
				addrs = append(addrs, c.Node("a3").PeerAddr(), c.Node("a3").RaftAddr())
			}
			for _, addr := range addrs {
				if err := handshake(addr, &pair); err == nil {
					t.Errorf("%s accepted a certificate of a foreign authority (cluster %s)", addr, cluster)
				}
				if err := handshake(addr, nil); err == nil {
					t.Errorf("%s accepted a peer without a certificate", addr)
				}
			}
		}
	})

	if err := c.StartNode(n); err != nil {
		t.Fatal(err)
	}
	c.online(t, "a2")
}

// handshake does a TLS 1.3 handshake and asks for a byte: a server refuses a client's certificate only then.
func handshake(addr string, pair *tls.Certificate) error {
	conf := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
	if pair != nil {
		conf.Certificates = []tls.Certificate{*pair}
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, conf)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return err
	}
	buf := make([]byte, 9)
	_, err = io.ReadFull(conn, buf) // the settings of an HTTP/2 server, or an alert
	return err
}

// ends runs tandemd with a configuration with which it must end by itself, with that code and one message with these words.
func ends(t *testing.T, config string, exit int, says []string) {
	t.Helper()
	dir := t.TempDir()
	file, log := filepath.Join(dir, "tandemd.yaml"), filepath.Join(dir, "log")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := lab.StartProcess("stranger", log, nil, filepath.Join(bin, "tandemd"), "--config", file)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(20 * time.Second):
		_ = p.Stop(syscall.SIGTERM, 10*time.Second)
		t.Fatalf("it runs:\n%s", lab.Tail(log, 20))
	}
	out, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var message string
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "{") {
			message += line
		}
	}
	if code := p.ExitCode(); code != exit {
		t.Errorf("ended with code %d, want %d: %s", code, exit, message)
	}
	for _, w := range says {
		if !strings.Contains(message, w) {
			t.Errorf("the message does not say %q: %s", w, message)
		}
	}
	if len(message) > 1500 || strings.Contains(message, "goroutine ") {
		t.Errorf("that is no message: %.3000s", message)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprint(l.Addr())
}

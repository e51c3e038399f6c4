package etcdkv_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/etcdkv"
	"github.com/tandem-storage/tandem/kvdb/kvdbtest"
)

const root = "../.."

// etcdBinary builds the server of deploy/etcd once and keeps it in .cache.
var etcdBinary = sync.OnceValues(func() (string, error) {
	bin, err := filepath.Abs(root + "/.cache/etcd")
	if err != nil {
		return "", err
	}
	if upToDate(bin, root+"/deploy/etcd/main.go", root+"/deploy/etcd/go.sum") {
		return bin, nil
	}
	tmp := fmt.Sprintf("%s.%d", bin, os.Getpid())
	out, err := exec.Command("go", "-C", root+"/deploy/etcd", "build", "-o", tmp, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build etcd: %w: %s", err, out)
	}
	return bin, os.Rename(tmp, bin)
})

func upToDate(target string, sources ...string) bool {
	built, err := os.Stat(target)
	if err != nil {
		return false
	}
	for _, s := range sources {
		if st, err := os.Stat(s); err != nil || st.ModTime().After(built.ModTime()) {
			return false
		}
	}
	return true
}

type member struct {
	name   string
	args   []string
	client string
	cmd    *exec.Cmd
	log    *os.File
}

type cluster struct {
	t       testing.TB
	certs   *kvdbtest.Authority
	members []*member
}

// newCluster starts n etcd members on loopback over TLS.
func newCluster(t testing.TB, n int) *cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and runs a real etcd")
	}
	bin, err := etcdBinary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := &cluster{t: t, certs: kvdbtest.NewAuthority(t)}
	files := c.certs.Files(dir, "etcd")
	var initial []string
	for i := range n {
		m := &member{name: fmt.Sprintf("m%d", i), client: "https://" + kvdbtest.FreeAddress(t)}
		peer := "https://" + kvdbtest.FreeAddress(t)
		initial = append(initial, m.name+"="+peer)
		m.args = []string{
			bin,
			"--name", m.name, "--data-dir", filepath.Join(dir, m.name), "--log-level", "warn", "--log-outputs", "stderr",
			"--listen-client-urls", m.client, "--advertise-client-urls", m.client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--cert-file", files.Cert, "--key-file", files.Key, "--trusted-ca-file", files.CA, "--client-cert-auth",
			"--peer-cert-file", files.Cert, "--peer-key-file", files.Key, "--peer-trusted-ca-file", files.CA, "--peer-client-cert-auth",
		}
		m.log, err = os.Create(filepath.Join(dir, m.name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		c.members = append(c.members, m)
	}
	for _, m := range c.members {
		m.args = append(m.args, "--initial-cluster", strings.Join(initial, ","))
		c.start(m)
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			c.kill(m)
			if t.Failed() {
				out, _ := os.ReadFile(m.log.Name())
				t.Logf("%s:\n%s", m.name, out)
			}
			_ = m.log.Close()
		}
	})
	c.wait()
	return c
}

func (c *cluster) start(m *member) {
	c.t.Helper()
	m.cmd = exec.Command(m.args[0], m.args[1:]...)
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
}

// kill is the loss of the process: SIGKILL.
func (c *cluster) kill(m *member) {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.cmd = nil
}

// wait until the cluster serves.
func (c *cluster) wait() {
	c.t.Helper()
	s := c.open(c.t)
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, _, err := s.List(ctx, "wait"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) endpoints() []string {
	var all []string
	for _, m := range c.members {
		all = append(all, m.client)
	}
	return all
}

func (c *cluster) options(t testing.TB) etcdkv.Options {
	return etcdkv.Options{
		Endpoints: c.endpoints(),
		TLS:       c.certs.Client("client"),
		Logger:    zaptest.NewLogger(t, zaptest.Level(zapcore.ErrorLevel)),
	}
}

func (c *cluster) open(t testing.TB) *etcdkv.Store {
	t.Helper()
	return open(t, c.options(t))
}

func open(t testing.TB, o etcdkv.Options) *etcdkv.Store {
	t.Helper()
	s, err := etcdkv.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// admin is etcd's own client, for what kvdb has no call for.
func (c *cluster) admin(t testing.TB, user, password string) *clientv3.Client {
	t.Helper()
	a, err := clientv3.New(clientv3.Config{
		Endpoints: c.endpoints(), TLS: c.certs.Client("admin"), Username: user, Password: password, DialTimeout: 30 * time.Second,
		Logger: zaptest.NewLogger(t, zaptest.Level(zapcore.ErrorLevel)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func (c *cluster) leader(t testing.TB) *member {
	t.Helper()
	a := c.admin(t, "", "")
	for _, m := range c.members {
		st, err := a.Status(t.Context(), m.client)
		if err == nil && st.Leader == st.Header.MemberId {
			return m
		}
	}
	t.Fatal("no member says that it leads")
	return nil
}

func (c *cluster) harness() kvdbtest.Harness {
	return kvdbtest.Harness{
		Open: func(t testing.TB) kvdb.Store { return c.open(t) },
		Compact: func(t testing.TB, rev kvdb.Revision) {
			if _, err := c.admin(t, "", "").Compact(t.Context(), int64(rev)); err != nil {
				t.Fatal(err)
			}
		},
	}
}

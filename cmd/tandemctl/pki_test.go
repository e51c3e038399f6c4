package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	domainpb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/replication/transport"
)

// ctl runs one command line without a daemon.
func ctl(t *testing.T, want rpcstatus.Exit, args ...string) *harness {
	t.Helper()
	h := newHarness(t, nil)
	if code := h.run(t.Context(), args); code != want {
		t.Fatalf("%v: exit code %d, want %d: %s", args, code, want, h.err.String())
	}
	return h
}

// issue makes a node's files with a new authority of a cluster.
func issue(t *testing.T, cluster string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	ctl(t, 0, "pki", "create-ca", "--cluster", cluster, "--dir", filepath.Join(dir, "ca"))
	for _, node := range []string{"a1", "operator"} {
		ctl(t, 0, "pki", "issue", "--ca-dir", filepath.Join(dir, "ca"), "--node", node, "--domain", "primary", "--out", filepath.Join(dir, node))
	}
	return dir
}

func TestPKI(t *testing.T) {
	dir := issue(t, "metro")
	ca, a1 := filepath.Join(dir, "ca"), filepath.Join(dir, "a1")
	sec, err := transport.LoadTLS(transport.TLSFiles{CA: a1 + "/ca.crt", Cert: a1 + "/node.crt", Key: a1 + "/node.key"}, "metro")
	if err != nil {
		t.Fatal(err)
	}
	if got := sec.Self().String(); got != "tandem://metro/primary/a1" {
		t.Errorf("the certificate is of %s", got)
	}
	for _, key := range []string{ca + "/ca.key", a1 + "/node.key"} {
		if fi, err := os.Stat(key); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", key, fi.Mode(), err)
		}
	}

	// Nothing is overwritten.
	before, err := os.ReadFile(ca + "/ca.key")
	if err != nil {
		t.Fatal(err)
	}
	ctl(t, rpcstatus.ExitExists, "pki", "create-ca", "--cluster", "metro", "--dir", ca)
	ctl(t, rpcstatus.ExitExists, "pki", "issue", "--ca-dir", ca, "--node", "a1", "--domain", "primary", "--out", a1)
	if after, err := os.ReadFile(ca + "/ca.key"); err != nil || string(after) != string(before) {
		t.Errorf("the key of the authority changed, %v", err)
	}

	// Unless it is asked for, and then nothing else is left there.
	old, err := os.ReadFile(a1 + "/node.key")
	if err != nil {
		t.Fatal(err)
	}
	h := ctl(t, 0, "pki", "issue", "--ca-dir", ca, "--node", "a1", "--domain", "secondary", "--out", a1, "--replace")
	if !strings.Contains(h.out.String(), "key: "+a1+"/node.key\n") {
		t.Errorf("got %s", h.out.String())
	}
	sec, err = transport.LoadTLS(transport.TLSFiles{CA: a1 + "/ca.crt", Cert: a1 + "/node.crt", Key: a1 + "/node.key"}, "metro")
	if err != nil || sec.Self().String() != "tandem://metro/secondary/a1" {
		t.Errorf("replaced: %v, %v", sec, err)
	}
	if key, err := os.ReadFile(a1 + "/node.key"); err != nil || string(key) == string(old) {
		t.Errorf("the key is the same, %v", err)
	}
	if names, err := os.ReadDir(a1); err != nil || len(names) != 3 {
		t.Errorf("the directory has %v, %v", names, err)
	}

	// Bad input.
	other := filepath.Join(dir, "other")
	ctl(t, rpcstatus.ExitUsage, "pki", "create-ca", "--cluster", "Not A Name", "--dir", other)
	ctl(t, rpcstatus.ExitUsage, "pki", "create-ca", "--cluster", "metro", "--dir", other, "--days", "0")
	ctl(t, rpcstatus.ExitUsage, "pki", "create-ca", "--cluster", "metro", "--dir", other, "--days", "36501")
	ctl(t, rpcstatus.ExitUsage, "pki", "issue", "--ca-dir", ca, "--node", "a/1", "--domain", "primary", "--out", other)
	ctl(t, rpcstatus.ExitUsage, "pki", "issue", "--ca-dir", ca, "--node", "a1", "--out", other)
	ctl(t, rpcstatus.ExitNotFound, "pki", "issue", "--ca-dir", other, "--node", "a1", "--domain", "primary", "--out", other)
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("a refused command left %s: %v", other, err)
	}

	h = ctl(t, 0, "pki", "issue", "--ca-dir", ca, "--node", "a2", "--domain", "primary", "--out", other, "-o", "json", "--host", "a2.example,10.0.0.2")
	if !strings.Contains(h.out.String(), `"node": "a2"`) || !strings.Contains(h.out.String(), `"key": "`+other+`/node.key"`) {
		t.Errorf("got %s", h.out.String())
	}
}

// Over TCP both ends prove that they are of one cluster.
func TestMutualTLS(t *testing.T) {
	ours, theirs := issue(t, "metro"), issue(t, "other")
	node := filepath.Join(ours, "a1")
	sec, err := transport.LoadTLS(transport.TLSFiles{CA: node + "/ca.crt", Cert: node + "/node.crt", Key: node + "/node.key"}, "metro")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(sec.ServerCredentials()))
	domainpb.RegisterClusterServer(srv, fixture())
	go func() { _ = srv.Serve(ln) }() // ends with Stop
	t.Cleanup(srv.Stop)

	status := func(ca, cert string) *harness {
		h := newHarness(t, nil)
		h.dial = grpc.NewClient
		h.env = map[string]string{
			envEndpoint: ln.Addr().String(), envTLSCA: filepath.Join(ca, "operator", "ca.crt"),
			envTLSCert: filepath.Join(cert, "operator", "node.crt"), envTLSKey: filepath.Join(cert, "operator", "node.key"),
		}
		return h
	}
	h := status(ours, ours)
	if code := h.run(t.Context(), []string{"status"}); code != rpcstatus.ExitOK {
		t.Errorf("exit code %d: %s", code, h.err.String())
	}
	for name, h := range map[string]*harness{
		"our authority, their certificate": status(ours, theirs),
		"their authority, our certificate": status(theirs, ours),
		"both theirs":                      status(theirs, theirs),
	} {
		if code := h.run(t.Context(), []string{"status"}); code != rpcstatus.ExitUnavailable {
			t.Errorf("%s: exit code %d: %s%s", name, code, h.out.String(), h.err.String())
		}
	}
	// Without any certificate there is no answer.
	h = newHarness(t, nil)
	h.dial = grpc.NewClient
	h.env[envEndpoint] = ln.Addr().String()
	if code := h.run(t.Context(), []string{"status"}); code != rpcstatus.ExitUnavailable {
		t.Errorf("without a certificate: exit code %d", code)
	}
}

package pki_test

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/transport/pki"
)

var node = transport.Identity{Cluster: "metro", Domain: "east", Node: "n1"}

// TestFiles: an authority that was saved and loaded signs on, for LoadTLS.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	crt, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	first, err := pki.NewCA("metro", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Save(crt, key); err != nil {
		t.Fatal(err)
	}
	if err := first.Save(crt, key); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwritten: %v", err)
	}
	ca, err := pki.LoadCA(crt, key)
	if err != nil || ca.Cluster() != "metro" {
		t.Fatalf("%v, %v", ca, err)
	}
	cert, err := ca.Issue(node, time.Hour, "localhost", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.Leaf.VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
	if err := cert.Leaf.VerifyHostname("localhost"); err != nil {
		t.Error(err)
	}
	own := filepath.Join(dir, "n1")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := ca.SaveNode(own, cert)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{key, files.Key} {
		if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	if s, err := transport.LoadTLS(files, "metro"); err != nil || s.Self() != node {
		t.Errorf("%v, %v", s, err)
	}
	if _, err := pki.LoadCA(files.Cert, files.Key); !errors.Is(err, pki.ErrFile) {
		t.Errorf("a node as an authority: %v", err)
	}
	if _, err := pki.LoadCA(crt, files.Key); !errors.Is(err, pki.ErrFile) {
		t.Errorf("wrong key: %v", err)
	}
	// A node's certificate signs nothing.
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil || cert.Leaf.IsCA {
		t.Errorf("authority: %v, %v", cert.Leaf.IsCA, err)
	}
}

func TestRefused(t *testing.T) {
	if _, err := pki.NewCA("No Such Name", time.Hour); !errors.Is(err, transport.ErrIdentity) {
		t.Errorf("bad cluster name: %v", err)
	}
	if _, err := pki.NewCA("metro", 0); err == nil {
		t.Error("an authority that was never valid")
	}
	ca, err := pki.NewCA("metro", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other := node
	other.Cluster = "other"
	if _, err := ca.Issue(other, time.Hour); !errors.Is(err, transport.ErrIdentity) {
		t.Errorf("another cluster: %v", err)
	}
	bad := node
	bad.Node = "../n"
	if _, err := ca.Issue(bad, time.Hour); !errors.Is(err, transport.ErrIdentity) {
		t.Errorf("bad node name: %v", err)
	}
	if _, err := ca.Issue(node, -time.Hour); err == nil {
		t.Error("a certificate that was never valid")
	}
}

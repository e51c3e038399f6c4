package nbd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority is a throw-away CA.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	var der []byte
	der, a.key = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.cert = cert
	a.pool.AddCert(cert)
	return a
}

// sign makes a key and a certificate for it; the first is self-signed.
func (a *authority) sign(tmpl *x509.Certificate) (der []byte, key *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	tmpl.Subject = pkix.Name{CommonName: "tandem test"}
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, parentKey := a.cert, a.key
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	der, err = x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	if err != nil {
		a.t.Fatal(err)
	}
	return der, key
}

func (a *authority) leaf() tls.Certificate {
	a.t.Helper()
	der, key := a.sign(&x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.leaf()}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert}
}

func (a *authority) client() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.leaf()}, RootCAs: a.pool, ServerName: "localhost"}
}

// writeFiles writes a client's certificates the way libnbd and gnutls want them.
func (a *authority) writeFiles(dir string) {
	a.t.Helper()
	leaf := a.leaf()
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{
		"ca-cert.pem":     {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		"client-cert.pem": {Type: "CERTIFICATE", Bytes: leaf.Certificate[0]},
		"client-key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

func TestTLSRequired(t *testing.T) {
	ca := newAuthority(t)
	s := startServer(t, Endpoint{Network: "tcp", Address: "127.0.0.1:0", TLS: ca.server(), RequireTLS: true})
	attach(t, s, "vol", newMem(false))

	c := dial(t, s)
	for _, opt := range []uint32{optList, optInfo, optGo, optStructuredReply, optSetMetaContext, 99} {
		if got := c.option(opt, infoData("vol")); got != repErrTLSReqd {
			t.Errorf("option %d without TLS: reply %#x", opt, got)
		}
	}
	if got := c.option(optStartTLS, []byte{0}); got != repErrInvalid {
		t.Errorf("starttls with data: reply %#x", got)
	}
	if err := c.upgrade(ca.client()); err != nil {
		t.Fatal(err)
	}
	if got := c.option(optStartTLS, nil); got != repErrInvalid {
		t.Errorf("starttls over TLS: reply %#x", got)
	}
	c.useStructured()
	c.goExport("vol")
	c.request(cmdWrite, 0, 0, 1<<20, make([]byte, 1<<20))
	c.wantSimple(0)
	c.request(cmdRead, 0, 0, 1<<20, nil)
	c.wantRead(1 << 20)

	c = dial(t, s)
	c.sendOption(optExportName, []byte("vol"))
	c.wantEOF()
	if got := dial(t, s).option(optAbort, nil); got != repAck {
		t.Errorf("abort without TLS: reply %#x", got)
	}
}

// TestTLSForgets checks that nothing said in plain text counts after the upgrade.
func TestTLSForgets(t *testing.T) {
	ca := newAuthority(t)
	s := startServer(t, Endpoint{Network: "tcp", Address: "127.0.0.1:0", TLS: ca.server()})
	attach(t, s, "vol", newMem(false))
	c := dial(t, s)
	c.useStructured()
	c.option(optSetMetaContext, contextData("vol", contextAllocation))
	if err := c.upgrade(ca.client()); err != nil {
		t.Fatal(err)
	}
	c.structured = false
	c.goExport("vol")
	c.request(cmdBlockStatus, 0, 0, 4096, nil)
	c.wantError(errnoInval)
	c.request(cmdRead, 0, 0, 4096, nil)
	c.wantRead(4096)

	// An option slipped in behind STARTTLS is not taken for one said over TLS.
	c = dial(t, s)
	c.sendOption(optStartTLS, nil)
	c.sendOption(optGo, infoData("vol"))
	c.optionReply(optStartTLS)
	for {
		b := make([]byte, 1<<10)
		n, err := c.conn.Read(b)
		if err != nil {
			break
		}
		if b[0] != 21 { // a TLS alert
			t.Fatalf("reply % x", b[:n])
		}
	}
}

func TestTLSWrongCertificate(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	s := startServer(t, Endpoint{Network: "tcp", Address: "127.0.0.1:0", TLS: ca.server(), RequireTLS: true})
	attach(t, s, "vol", newMem(false))
	for name, conf := range map[string]*tls.Config{
		"of another authority": {Certificates: other.client().Certificates, RootCAs: ca.pool, ServerName: "localhost"},
		"none":                 {RootCAs: ca.pool, ServerName: "localhost"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, s)
			if err := c.upgrade(conf); err != nil {
				return
			}
			// In TLS 1.3 the client learns of the refusal with its first read.
			_, _ = c.conn.Write(binary.BigEndian.AppendUint64(nil, magicOption))
			_, _ = c.conn.Write([]byte{0, 0, 0, optList, 0, 0, 0, 0})
			if n, err := c.conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("the server took the client and sent %d bytes", n)
			}
		})
	}
}

func TestTLSKill(t *testing.T) {
	ca := newAuthority(t)
	s := startServer(t, Endpoint{Network: "tcp", Address: "127.0.0.1:0", TLS: ca.server(), RequireTLS: true})
	a := attach(t, s, "vol", newMem(false))
	c := dial(t, s)
	if err := c.upgrade(ca.client()); err != nil {
		t.Fatal(err)
	}
	c.goExport("vol")
	a.Kill()
	c.wantEOF()
}

func TestTLSLibnbd(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	ca.writeFiles(dir)
	s := startServer(t, Endpoint{Network: "tcp", Address: "127.0.0.1:0", TLS: ca.server(), RequireTLS: true})
	a := attach(t, s, "vol", newMem(true))
	uri := a.Path() + "?tls-certificates=" + dir
	image, _ := randomFile(t)
	run(t, "nbdcopy", image, uri)
	run(t, "nbdcopy", uri, filepath.Join(dir, "back"))
	run(t, "cmp", image, filepath.Join(dir, "back"))
}

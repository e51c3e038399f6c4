// Package pki makes certificates for the nodes of a cluster: a small authority
// for those who have none, for demonstrations and tests. It keeps nothing but
// the files that it is told to write.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/tandem-storage/tandem/replication/transport"
)

// ErrFile is returned for a file that does not hold what it should.
var ErrFile = errors.New("pki: unusable file")

// clockSkew is how much a node's clock may be behind the issuer's.
const clockSkew = time.Hour

// CA is a certificate authority.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes an authority for cluster that is valid for the given time. It
// signs names of that cluster only.
func NewCA(cluster string, valid time.Duration) (*CA, error) {
	if err := (transport.Identity{Cluster: cluster, Domain: "x", Node: "x"}).Check(); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	t, err := template(pkix.Name{CommonName: cluster + " authority", Organization: []string{cluster}}, valid)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return sign(t, t, key, key)
}

// Issue makes a certificate for id with a new key, good for both ends of a
// connection. Hosts are added as DNS names or addresses for clients that check
// those; Tandem's nodes do not.
func (a *CA) Issue(id transport.Identity, valid time.Duration, hosts ...string) (tls.Certificate, error) {
	if err := id.Check(); err != nil {
		return tls.Certificate{}, err
	}
	if c := a.Cluster(); id.Cluster != c {
		return tls.Certificate{}, fmt.Errorf("%w: %s is not of cluster %q, which this authority is for", transport.ErrIdentity, id, c)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("pki: %w", err)
	}
	t, err := template(pkix.Name{CommonName: string(id.Node), Organization: []string{id.Cluster}}, valid)
	if err != nil {
		return tls.Certificate{}, err
	}
	t.URIs = []*url.URL{id.URI()}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	c, err := sign(t, a.cert, key, a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{c.cert.Raw}, PrivateKey: key, Leaf: c.cert}, nil
}

// Cluster is the name of the cluster whose nodes the authority signs.
func (a *CA) Cluster() string {
	if len(a.cert.Subject.Organization) != 1 {
		return ""
	}
	return a.cert.Subject.Organization[0]
}

// Pool has the authority's certificate: the roots for transport.NewTLS.
func (a *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// Save writes certFile and keyFile in PEM, the key readable by the owner only.
// Files that exist are not overwritten: an authority that is lost cannot be had
// again.
func (a *CA) Save(certFile, keyFile string) error {
	return writePair(certFile, keyFile, [][]byte{a.cert.Raw}, a.key)
}

// LoadCA reads what Save wrote.
func LoadCA(certFile, keyFile string) (*CA, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %s with key %s: %w", ErrFile, certFile, keyFile, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%w: %s is not an authority", ErrFile, certFile)
	}
	return &CA{cert: pair.Leaf, key: key}, nil
}

// SaveNode writes the files that transport.LoadTLS reads into dir: ca.crt, node.crt
// and node.key. Files that exist are not overwritten.
func (a *CA) SaveNode(dir string, cert tls.Certificate) (transport.TLSFiles, error) {
	f := transport.TLSFiles{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "node.crt"), Key: filepath.Join(dir, "node.key")}
	if err := writePEM(f.CA, 0o644, "CERTIFICATE", a.cert.Raw); err != nil {
		return f, err
	}
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return f, fmt.Errorf("pki: key of type %T cannot be saved", cert.PrivateKey)
	}
	return f, writePair(f.Cert, f.Key, cert.Certificate, key)
}

func template(name pkix.Name, valid time.Duration) (*x509.Certificate, error) {
	if valid <= 0 {
		return nil, fmt.Errorf("pki: a validity of %v makes no usable certificate", valid)
	}
	now := time.Now()
	return &x509.Certificate{Subject: name, NotBefore: now.Add(-clockSkew), NotAfter: now.Add(valid)}, nil
}

// sign signs t, whose key is key, by parent.
func sign(t, parent *x509.Certificate, key, by crypto.Signer) (*CA, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), by)
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	return &CA{cert: c, key: key}, nil
}

func writePair(certFile, keyFile string, chain [][]byte, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("pki: %w", err)
	}
	if err := writePEM(keyFile, 0o600, "PRIVATE KEY", der); err != nil {
		return err
	}
	return writePEM(certFile, 0o644, "CERTIFICATE", chain...)
}

func writePEM(file string, mode os.FileMode, kind string, ders ...[]byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("pki: %w", err)
	}
	for _, der := range ders {
		if err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der}); err != nil {
			break
		}
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("pki: %s: %w", file, err)
	}
	return nil
}

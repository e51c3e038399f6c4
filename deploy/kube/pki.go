package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of a cluster, which are valid for a day. Its files are in a directory: ca.crt, ca.key, and NAME.crt, NAME.key.
type authority struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

const validity = 24 * time.Hour

func newAuthority(dir, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a := &authority{dir: dir, key: key}
	a.cert, err = a.sign("ca", t, t, key)
	return a, err
}

// issue makes a certificate for clients and servers.
func (a *authority) issue(file string, subject pkix.Name, names []string, ips ...net.IP) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	_, err = a.sign(file, &x509.Certificate{
		Subject: subject, DNSNames: names, IPAddresses: ips, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, key)
	return err
}

// sign writes a certificate and its key.
func (a *authority) sign(file string, t, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	t.SerialNumber, t.NotBefore, t.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(validity)
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	if err := a.write(file+".crt", "CERTIFICATE", der); err != nil {
		return nil, err
	}
	if err := a.writeKey(file+".key", key); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// serviceAccounts makes the key pair that tokens of service accounts are signed with: sa.key, sa.pub.
func (a *authority) serviceAccounts() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	if err := a.write("sa.pub", "PUBLIC KEY", public); err != nil {
		return err
	}
	return a.writeKey("sa.key", key)
}

func (a *authority) writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return a.write(file, "EC PRIVATE KEY", der)
}

func (a *authority) write(file, kind string, der []byte) error {
	return os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// kubeconfig writes FILE.conf, with which the owner of FILE.crt reaches the API at server.
func (a *authority) kubeconfig(file, server string) error {
	type m = map[string]any
	data, err := json.Marshal(m{
		"apiVersion": "v1", "kind": "Config", "current-context": "only",
		"clusters": []m{{"name": "only", "cluster": m{"server": server, "certificate-authority": filepath.Join(a.dir, "ca.crt")}}},
		"users": []m{{"name": "only", "user": m{
			"client-certificate": filepath.Join(a.dir, file+".crt"), "client-key": filepath.Join(a.dir, file+".key"),
		}}},
		"contexts": []m{{"name": "only", "context": m{"cluster": "only", "user": "only"}}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(a.dir, file+".conf"), data, 0o600)
}

package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tandem-storage/tandem/replication/transport"
)

// Environment variables that stand in for flags.
const (
	envEndpoint = "TANDEM_ENDPOINT"
	envTLSCA    = "TANDEM_TLS_CA"
	envTLSCert  = "TANDEM_TLS_CERT"
	envTLSKey   = "TANDEM_TLS_KEY"
)

const defaultEndpoint = "/run/tandem/tandemd.sock"

// or returns the flag, else the environment variable.
func (a *app) or(flag, env string) string {
	if flag != "" {
		return flag
	}
	return a.getenv(env)
}

func (a *app) endpoint() string {
	if e := a.or(a.flags.endpoint, envEndpoint); e != "" {
		return e
	}
	return defaultEndpoint
}

// unixPath returns the path of a unix socket endpoint.
func unixPath(endpoint string) (string, bool) {
	if p, ok := strings.CutPrefix(endpoint, "unix:"); ok {
		return strings.Replace(p, "//", "", 1), true
	}
	return endpoint, strings.HasPrefix(endpoint, "/")
}

// connect returns the connection to the daemon. It sends nothing yet: an unreachable daemon shows at the first call.
func (a *app) connect() (*grpc.ClientConn, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	target, creds, err := a.target()
	if err != nil {
		return nil, err
	}
	conn, err := a.dial(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		return nil, usageError("--endpoint %s cannot be used: %v", a.endpoint(), err)
	}
	a.conn = conn
	return conn, nil
}

// target turns the endpoint and the TLS flags into what gRPC wants.
func (a *app) target() (string, credentials.TransportCredentials, error) {
	endpoint := a.endpoint()
	if path, ok := unixPath(endpoint); ok {
		if !filepath.IsAbs(path) {
			return "", nil, usageError("--endpoint %q: the path of a unix socket must be absolute, as in %s", endpoint, defaultEndpoint)
		}
		return "unix://" + path, insecure.NewCredentials(), nil
	}
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil || port == "" {
		return "", nil, usageError("--endpoint %q is neither the absolute path of a unix socket nor host:port", endpoint)
	}
	ca, cert, key := a.or(a.flags.tlsCA, envTLSCA), a.or(a.flags.tlsCert, envTLSCert), a.or(a.flags.tlsKey, envTLSKey)
	switch {
	case ca != "" && cert != "" && key != "":
		creds, err := tlsCredentials(ca, cert, key)
		return "passthrough:///" + endpoint, creds, err
	case ca != "" || cert != "" || key != "":
		return "", nil, usageError("--tls-ca, --tls-cert and --tls-key must be given together")
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", nil, usageError("--endpoint %s is on another machine: give --tls-ca, --tls-cert and --tls-key", endpoint)
	}
	return "passthrough:///" + endpoint, insecure.NewCredentials(), nil
}

// tlsCredentials prove who we are, and accept any node of the same cluster. Certificates of nodes carry
// tandem:// URIs and no host names, so that is what is checked, by the rules of package transport.
func tlsCredentials(caFile, certFile, keyFile string) (credentials.TransportCredentials, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, usageError("--tls-ca: %v", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, usageError("--tls-ca: %s has no certificate in PEM form", caFile)
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, usageError("--tls-cert, --tls-key: %v", err)
	}
	self, err := clusterOf(pair.Leaf)
	if err != nil {
		return nil, usageError("--tls-cert %s: %v", certFile, err)
	}
	return credentials.NewTLS(&tls.Config{
		Certificates:       []tls.Certificate{pair},
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // of the host name; VerifyConnection checks the chain and the URI
		VerifyConnection: func(cs tls.ConnectionState) error {
			chain := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
			for _, c := range cs.PeerCertificates[1:] {
				chain.Intermediates.AddCert(c)
			}
			if _, err := cs.PeerCertificates[0].Verify(chain); err != nil {
				return fmt.Errorf("tandemctl: the other end is not of this cluster: %w", err)
			}
			cluster, err := clusterOf(cs.PeerCertificates[0])
			if err == nil && cluster != self {
				err = fmt.Errorf("tandemctl: the other end is of cluster %q, the certificate given is of %q", cluster, self)
			}
			return err
		},
	}), nil
}

// clusterOf returns the cluster that a certificate belongs to.
func clusterOf(c *x509.Certificate) (string, error) {
	for _, u := range c.URIs {
		if id, err := transport.ParseIdentity(u); err == nil {
			return id.Cluster, nil
		}
	}
	return "", fmt.Errorf("tandemctl: certificate %q names no node of a cluster", c.Subject)
}

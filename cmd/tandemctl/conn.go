package main

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
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

func tlsCredentials(caFile, certFile, keyFile string) (credentials.TransportCredentials, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, usageError("--tls-ca: %v", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, usageError("--tls-ca: %s has no certificate in PEM form", caFile)
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, usageError("--tls-cert, --tls-key: %v", err)
	}
	return credentials.NewTLS(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}), nil
}

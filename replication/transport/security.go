package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/tandem-storage/tandem/replication"
)

// Security is how a node proves who it is and knows who others are. It is made
// by LoadTLS, NewTLS or InsecureLoopback.
type Security struct {
	self Identity
	tls  *tls.Config // nil: insecure
	lg   *zap.Logger
}

// TLSFiles are the PEM files of a node.
type TLSFiles struct {
	CA   string // certificates of the authorities that sign nodes of this cluster
	Cert string // this node's certificate, with intermediates behind it
	Key  string // its private key
}

// LoadTLS reads files and returns the Security of the node that the certificate
// names. ErrConfig if they cannot be used, ErrIdentity if the certificate is of
// another cluster than the given one.
func LoadTLS(files TLSFiles, cluster string) (*Security, error) {
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate %s with key %s: %w", ErrConfig, files.Cert, files.Key, err)
	}
	pem, err := os.ReadFile(files.CA)
	if err != nil {
		return nil, fmt.Errorf("%w: authority: %w", ErrConfig, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: authority %s has no certificate in PEM", ErrConfig, files.CA)
	}
	s, err := NewTLS(cert, roots, cluster)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", files.Cert, err)
	}
	return s, nil
}

// NewTLS is LoadTLS of what is in memory.
func NewTLS(cert tls.Certificate, roots *x509.CertPool, cluster string) (*Security, error) {
	if len(cert.Certificate) == 0 {
		return nil, fmt.Errorf("%w: no certificate", ErrConfig)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	self, err := certIdentity(leaf)
	if err != nil {
		return nil, err
	}
	if self.Cluster != cluster {
		return nil, fmt.Errorf("%w: certificate of %s, but this node is configured for cluster %q", ErrIdentity, self, cluster)
	}
	// A certificate that every peer would refuse is better refused here.
	if err := verifyChain(append([]*x509.Certificate{leaf}, parseRest(cert)...), roots, x509.ExtKeyUsageServerAuth); err != nil {
		return nil, fmt.Errorf("%w: own certificate: %w", ErrConfig, err)
	}
	return &Security{self: self, lg: zap.NewNop(), tls: &tls.Config{
		Certificates: []tls.Certificate{cert},
		RootCAs:      roots,
		ClientCAs:    roots,
		MinVersion:   tls.VersionTLS13,
	}}, nil
}

func parseRest(cert tls.Certificate) []*x509.Certificate {
	var rest []*x509.Certificate
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			rest = append(rest, c)
		}
	}
	return rest
}

// InsecureLoopback is for one node without any configuration: no certificates,
// and no connection to or from anything but a loopback address. Whoever is on
// the machine is taken for self.
func InsecureLoopback(self Identity) (*Security, error) {
	if err := self.Check(); err != nil {
		return nil, err
	}
	return &Security{self: self, lg: zap.NewNop()}, nil
}

// WithLogger returns s for a server that logs whom it refuses, and why: with TLS
// 1.3 the other end learns little more than that the connection is gone.
func (s *Security) WithLogger(lg *zap.Logger) *Security {
	c := *s
	c.lg = lg
	return &c
}

// Self is who this node is.
func (s *Security) Self() Identity { return s.self }

// ServerCredentials are for grpc.Creds: they let in nodes of the same cluster only.
func (s *Security) ServerCredentials() credentials.TransportCredentials {
	if s.tls == nil {
		return refusals{loopbackCredentials{self: s.self}, s.lg}
	}
	return refusals{credentials.NewTLS(s.ServerTLS()), s.lg}
}

// refusals logs failed handshakes of a server.
type refusals struct {
	credentials.TransportCredentials
	lg *zap.Logger
}

// ServerHandshake implements credentials.TransportCredentials.
func (r refusals) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := r.TransportCredentials.ServerHandshake(c)
	if err != nil && !errors.Is(err, credentials.ErrConnDispatched) && !errors.Is(err, io.EOF) { // who only looks whether the port is open is no matter
		r.lg.Warn("connection refused", zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
	}
	return secured, info, err
}

// Clone implements credentials.TransportCredentials.
func (r refusals) Clone() credentials.TransportCredentials {
	return refusals{r.TransportCredentials.Clone(), r.lg}
}

// ClientCredentials are for connections to node and refuse any other.
func (s *Security) ClientCredentials(node replication.NodeID) credentials.TransportCredentials {
	if s.tls == nil {
		return loopbackCredentials{self: s.self}
	}
	return credentials.NewTLS(s.clientTLS(node))
}

// clientTLS is for connections to node; not for the insecure mode.
func (s *Security) clientTLS(node replication.NodeID) *tls.Config {
	c := s.tls.Clone()
	// Nodes have URIs, not host names; VerifyConnection checks the chain and the URI.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyChain(cs.PeerCertificates, c.RootCAs, x509.ExtKeyUsageServerAuth); err != nil {
			return fmt.Errorf("%w: node %q: %w", ErrIdentity, node, err)
		}
		id, err := s.checkPeer(cs)
		if err != nil {
			return err
		}
		if id.Node != node {
			return fmt.Errorf("%w: dialled node %q, but %s answered; check the addresses of both nodes", ErrIdentity, node, id)
		}
		return nil
	}
	return c
}

// checkPeer returns who the verified other end of cs is.
func (s *Security) checkPeer(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: no certificate", ErrIdentity)
	}
	id, err := certIdentity(cs.PeerCertificates[0])
	if err != nil {
		return Identity{}, err
	}
	if id.Cluster != s.self.Cluster {
		return Identity{}, fmt.Errorf("%w: %s is not of cluster %q", ErrIdentity, id, s.self.Cluster)
	}
	return id, nil
}

func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(o)
	return err
}

// PeerIdentity tells who sent the request that ctx belongs to. ErrIdentity if the
// connection does not prove it. For any service on a server with ServerCredentials.
func PeerIdentity(ctx context.Context) (Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, fmt.Errorf("%w: not a request of a peer", ErrIdentity)
	}
	return infoIdentity(p.AuthInfo, p.Addr)
}

// infoIdentity tells who the handshake that gave info was with.
func infoIdentity(info credentials.AuthInfo, addr net.Addr) (Identity, error) {
	switch a := info.(type) {
	case credentials.TLSInfo:
		// The server's credentials verified the chain and the cluster at the handshake.
		if len(a.State.VerifiedChains) > 0 {
			return certIdentity(a.State.PeerCertificates[0])
		}
	case loopbackInfo:
		return a.self, nil
	}
	return Identity{}, fmt.Errorf("%w: %s has no verified certificate", ErrIdentity, addr)
}

// loopbackCredentials is the insecure mode: no encryption, loopback only.
type loopbackCredentials struct{ self Identity }

// loopbackInfo says that the connection did not leave the machine.
type loopbackInfo struct {
	credentials.CommonAuthInfo
	self Identity
}

// AuthType implements credentials.AuthInfo.
func (loopbackInfo) AuthType() string { return "insecure-loopback" }

func (l loopbackCredentials) handshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		return nil, nil, fmt.Errorf("%w: %s", ErrNotLoopback, a)
	}
	return c, loopbackInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, self: l.self}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (l loopbackCredentials) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return l.handshake(c)
}

// ServerHandshake implements credentials.TransportCredentials.
func (l loopbackCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return l.handshake(c)
}

// Info implements credentials.TransportCredentials.
func (loopbackCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "insecure-loopback"}
}

// Clone implements credentials.TransportCredentials.
func (l loopbackCredentials) Clone() credentials.TransportCredentials { return l }

// OverrideServerName implements credentials.TransportCredentials.
func (loopbackCredentials) OverrideServerName(string) error { return nil }

package transport

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
)

// ServerTLS is for other listeners of this node (the embedded kvdb's): it lets in
// nodes of the same cluster only. Nil in the insecure mode.
func (s *Security) ServerTLS() *tls.Config {
	if s.tls == nil {
		return nil
	}
	c := s.tls.Clone()
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := s.checkPeer(cs)
		return err
	}
	return c
}

// ClientTLS is for connections to any node of the same cluster, when which one it
// is does not matter or is found out otherwise. Nil in the insecure mode.
func (s *Security) ClientTLS() *tls.Config {
	if s.tls == nil {
		return nil
	}
	c := s.tls.Clone()
	// Nodes have URIs, not host names; VerifyConnection checks the chain and the URI.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyChain(cs.PeerCertificates, c.RootCAs, x509.ExtKeyUsageServerAuth); err != nil {
			return fmt.Errorf("%w: %w", ErrIdentity, err)
		}
		_, err := s.checkPeer(cs)
		return err
	}
	return c
}

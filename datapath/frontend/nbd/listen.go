package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Endpoint says where and how clients may connect.
type Endpoint struct {
	Network string // "unix" or "tcp"
	Address string // path of the socket, or host:port

	// TLS, if not nil, is offered to clients; with RequireTLS nothing but the
	// upgrade is served without it. Whether clients need a certificate is up to
	// TLS.ClientAuth.
	TLS        *tls.Config
	RequireTLS bool
}

// listener is an endpoint that listens.
type listener struct {
	net.Listener
	endpoint Endpoint
}

// listen opens e. A unix socket is made with mode 0600; one that a dead server
// left behind is replaced.
func listen(e Endpoint) (*listener, error) {
	if e.RequireTLS && e.TLS == nil {
		return nil, fmt.Errorf("nbd: listen on %s: TLS is required but not configured; give certificates", e.Address)
	}
	var c net.ListenConfig
	switch e.Network {
	case "tcp":
	case "unix":
		if err := removeStale(e.Address); err != nil {
			return nil, err
		}
		c.Control = makePrivate
	default:
		return nil, fmt.Errorf("nbd: listen on %s: unknown network %q; use unix or tcp", e.Address, e.Network)
	}
	l, err := c.Listen(context.Background(), e.Network, e.Address)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	return &listener{Listener: l, endpoint: e}, nil
}

// makePrivate sets the mode of the file that bind will make, which on Linux is the socket's own.
func makePrivate(_, _ string, raw syscall.RawConn) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
		return cerr
	}
	return err
}

// removeStale removes the socket at path if nobody listens on it.
func removeStale(path string) error {
	i, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	if i.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("nbd: listen on %s: the file exists and is not a socket; remove it or choose another path", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("nbd: listen on %s: another process listens there", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("nbd: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	return nil
}

// path is the NBD URI of the export id.
func (l *listener) path(id string) string {
	scheme := "nbd"
	if l.endpoint.RequireTLS {
		scheme = "nbds"
	}
	if l.endpoint.Network != "unix" {
		return scheme + "://" + l.Addr().String() + "/" + url.PathEscape(id)
	}
	// Clients do not all take a plus sign for a space; a slash need not be escaped.
	socket := strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(l.endpoint.Address))
	return scheme + "+unix:///" + url.PathEscape(id) + "?socket=" + socket
}

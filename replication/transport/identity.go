package transport

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"github.com/tandem-storage/tandem/replication"
)

// uriScheme of the names in certificates: tandem://<cluster>/<domain>/<node>.
const uriScheme = "tandem"

// maxName is the largest length of a cluster's, domain's or node's name.
const maxName = 63

// URI is the name of id in the subject alternative names of its certificate.
func (id Identity) URI() *url.URL {
	return &url.URL{Scheme: uriScheme, Host: id.Cluster, Path: "/" + string(id.Domain) + "/" + string(id.Node)}
}

func (id Identity) String() string { return id.URI().String() }

// Check says whether the names can stand in a certificate: 1 to 63 of a-z, 0-9,
// '-', '_' and '.', not starting with a dot. ErrIdentity otherwise.
func (id Identity) Check() error {
	for _, n := range []struct{ what, name string }{{"cluster", id.Cluster}, {"domain", string(id.Domain)}, {"node", string(id.Node)}} {
		if !validName(n.name) {
			return fmt.Errorf("%w: %s name %q is not 1 to %d of a-z, 0-9, '-', '_', '.'", ErrIdentity, n.what, n.name, maxName)
		}
	}
	return nil
}

func validName(s string) bool {
	if s == "" || len(s) > maxName || s[0] == '.' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

// ParseIdentity is the inverse of Identity.URI.
func ParseIdentity(u *url.URL) (Identity, error) {
	domain, node, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	id := Identity{Cluster: u.Host, Domain: replication.DomainID(domain), Node: replication.NodeID(node)}
	if u.Scheme != uriScheme || !ok {
		return Identity{}, fmt.Errorf("%w: %q is not %s://<cluster>/<domain>/<node>", ErrIdentity, u, uriScheme)
	}
	if err := id.Check(); err != nil {
		return Identity{}, err
	}
	if id.String() != u.String() {
		return Identity{}, fmt.Errorf("%w: %q has more than the three names", ErrIdentity, u)
	}
	return id, nil
}

// certIdentity returns the one identity that c names.
func certIdentity(c *x509.Certificate) (Identity, error) {
	var found *url.URL
	for _, u := range c.URIs {
		if u.Scheme != uriScheme {
			continue
		}
		if found != nil {
			return Identity{}, fmt.Errorf("%w: certificate %q names two nodes, %s and %s", ErrIdentity, c.Subject, found, u)
		}
		found = u
	}
	if found == nil {
		return Identity{}, fmt.Errorf("%w: certificate %q names no node (no URI %s://<cluster>/<domain>/<node>)", ErrIdentity, c.Subject, uriScheme)
	}
	return ParseIdentity(found)
}

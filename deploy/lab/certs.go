package lab

import (
	"os"
	"path/filepath"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/transport/pki"
)

// issue makes an authority that is thrown away at once and a certificate for every node.
func (c *Cluster) issue() error {
	ca, err := pki.NewCA(clusterName, 24*time.Hour)
	if err != nil {
		return err
	}
	for _, n := range c.nodes {
		id := transport.Identity{Cluster: clusterName, Domain: replication.DomainID(n.Site), Node: replication.NodeID(n.Name)}
		cert, err := ca.Issue(id, 24*time.Hour, "127.0.0.1")
		if err != nil {
			return err
		}
		dir := filepath.Join(n.Dir, "pki")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if n.tls, err = ca.SaveNode(dir, cert); err != nil {
			return err
		}
	}
	return nil
}

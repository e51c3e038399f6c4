package lab

import (
	"context"
	"os"
	"path/filepath"
)

// clusterName is in every certificate.
const clusterName = "lab"

// tlsFiles are the three files of a node's tls block.
type tlsFiles struct{ ca, cert, key string }

// issue makes an authority with tandemctl, and a certificate for every node.
func (c *Cluster) issue(ctx context.Context) error {
	ctl, ca := filepath.Join(c.spec.Bin, "tandemctl"), filepath.Join(c.spec.Work, "ca")
	if _, err := Run(ctx, ctl, "pki", "create-ca", "--cluster", clusterName, "--dir", ca); err != nil {
		return err
	}
	for _, n := range c.nodes {
		dir := filepath.Join(n.Dir, "pki")
		if _, err := Run(ctx, ctl, "pki", "issue", "--ca-dir", ca, "--domain", n.Site, "--node", n.Name, "--out", dir); err != nil {
			return err
		}
		n.tls = tlsFiles{filepath.Join(dir, "ca.crt"), filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key")}
	}
	return os.RemoveAll(ca) // thrown away: nobody joins this cluster later
}

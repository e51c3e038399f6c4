package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/transport/pki"
)

// Files of the authority in its directory.
const (
	caCertFile = "ca.crt"
	caKeyFile  = "ca.key"
)

// maxDays bounds the validity of a certificate: a hundred years.
const maxDays = 36500

func (a *app) pkiCreateCACommand() *cobra.Command {
	var cluster, dir string
	var days uint
	cmd := &cobra.Command{
		Use:   "create-ca --cluster NAME --dir DIR",
		Short: "Make a certificate authority for a cluster",
		Long: `Make a certificate authority for a cluster: DIR/ca.crt, and DIR/ca.key, which must be kept secret and safe, away from the
nodes. Files that exist are not overwritten. No daemon is asked.`,
		Example: `  tandemctl pki create-ca --cluster metro --dir ./ca`,
		Args:    cobra.NoArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			valid, err := validity(days)
			if err != nil {
				return err
			}
			ca, err := pki.NewCA(cluster, valid)
			if err != nil {
				return pkiError(err)
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return pkiError(err)
			}
			cert, key := filepath.Join(dir, caCertFile), filepath.Join(dir, caKeyFile)
			if err := ca.Save(cert, key); err != nil {
				return pkiError(err)
			}
			return a.printFiles(pkiFiles{Cluster: cluster, Cert: cert, Key: key},
				fmt.Sprintf("Authority for cluster %s: %s and %s (keep the key secret)", cluster, cert, key))
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "`name` of the cluster, as clusterName in the configuration")
	cmd.Flags().StringVar(&dir, "dir", "", "`directory` for the files, made if it does not exist")
	cmd.Flags().UintVar(&days, "days", 3650, "validity in days")
	_ = cmd.MarkFlagRequired("cluster") // the flags are there: see above
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}

func (a *app) pkiIssueCommand() *cobra.Command {
	var caDir, node, domain, out string
	var hosts []string
	var days uint
	var replace bool
	cmd := &cobra.Command{
		Use:   "issue --node NODE --domain DOMAIN --ca-dir DIR --out DIR",
		Short: "Issue a node's certificate",
		Long: `Issue a node's certificate, signed by the authority in --ca-dir: ca.crt, node.crt and node.key in --out. Copy these three to the
node and name them in the tls block of its configuration. Files that exist are not overwritten, unless by --replace. No daemon is asked.

An operator who uses tandemctl over TCP needs a certificate as well, issued to a node name that no node has.`,
		Example: `  tandemctl pki issue --ca-dir ./ca --node a1 --domain primary --out ./a1`,
		Args:    cobra.NoArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			valid, err := validity(days)
			if err != nil {
				return err
			}
			ca, err := pki.LoadCA(filepath.Join(caDir, caCertFile), filepath.Join(caDir, caKeyFile))
			if err != nil {
				return pkiError(err)
			}
			id := transport.Identity{Cluster: ca.Cluster(), Domain: replication.DomainID(domain), Node: replication.NodeID(node)}
			cert, err := ca.Issue(id, valid, hosts...)
			if err != nil {
				return pkiError(err)
			}
			if err := os.MkdirAll(out, 0o700); err != nil {
				return pkiError(err)
			}
			f, err := saveNode(ca, out, cert, replace)
			if err != nil {
				return pkiError(err)
			}
			return a.printFiles(pkiFiles{Cluster: id.Cluster, Domain: domain, Node: node, CA: f.CA, Cert: f.Cert, Key: f.Key},
				fmt.Sprintf("Certificate of %s, valid until %s. For its configuration:\n\ntls:\n  ca: %s\n  cert: %s\n  key: %s",
					id, cert.Leaf.NotAfter.UTC().Format(time.DateOnly), f.CA, f.Cert, f.Key))
		},
	}
	cmd.Flags().StringVar(&caDir, "ca-dir", "", "`directory` of the authority, made by create-ca")
	cmd.Flags().StringVar(&node, "node", "", "`name` of the node, as nodeID in its configuration")
	cmd.Flags().StringVar(&domain, "domain", "", "cluster `domain` of the node")
	cmd.Flags().StringVar(&out, "out", "", "`directory` for the node's files, made if it does not exist")
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "host `names` or addresses for clients that check these, such as NBD over TLS")
	cmd.Flags().UintVar(&days, "days", 365, "validity in days")
	cmd.Flags().BoolVar(&replace, "replace", false, "replace files of this name in --out, each at once; a daemon reads them when it starts")
	for _, f := range []string{"ca-dir", "node", "domain", "out"} {
		_ = cmd.MarkFlagRequired(f) // the flags are there: see above
	}
	return cmd
}

// saveNode writes a node's files into dir. Those that are replaced are each the old one or the new one at any time; after an error key and
// certificate may be of two pairs, which repeating it mends.
func saveNode(ca *pki.CA, dir string, cert tls.Certificate, replace bool) (f transport.TLSFiles, err error) {
	if !replace {
		return ca.SaveNode(dir, cert)
	}
	beside, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(beside)) }()
	f, err = ca.SaveNode(beside, cert)
	for _, file := range []*string{&f.CA, &f.Key, &f.Cert} {
		if err != nil {
			return f, err
		}
		to := filepath.Join(dir, filepath.Base(*file))
		err, *file = os.Rename(*file, to), to
	}
	return f, err
}

// pkiFiles is the JSON answer of the pki commands.
type pkiFiles struct {
	Cluster string `json:"cluster"`
	Domain  string `json:"domain,omitempty"`
	Node    string `json:"node,omitempty"`
	CA      string `json:"ca,omitempty"`
	Cert    string `json:"cert"`
	Key     string `json:"key"`
}

func (a *app) printFiles(f pkiFiles, text string) error {
	if a.flags.output != outputJSON {
		fmt.Fprintln(a.stdout, text)
		return nil
	}
	data, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("tandemctl: cannot write the answer as JSON: %w", err)
	}
	return a.printJSON(data)
}

func validity(days uint) (time.Duration, error) {
	if days == 0 || days > maxDays {
		return 0, usageError("--days %d: use 1 to %d", days, maxDays)
	}
	return time.Duration(days) * 24 * time.Hour, nil
}

// pkiError gives the errors of files and names their exit codes.
func pkiError(err error) error {
	switch {
	case errors.Is(err, os.ErrExist):
		return &cliError{exit: rpcstatus.ExitExists, msg: err.Error(), hint: "nothing is overwritten: choose another directory, or move the file away"}
	case errors.Is(err, transport.ErrIdentity):
		return &cliError{exit: rpcstatus.ExitUsage, msg: err.Error()}
	case errors.Is(err, os.ErrNotExist):
		return &cliError{exit: rpcstatus.ExitNotFound, msg: err.Error()}
	default:
		return &cliError{exit: rpcstatus.ExitError, msg: err.Error()}
	}
}

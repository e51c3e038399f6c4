package kube

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/deploy/kube/nodeplan"
	"github.com/tandem-storage/tandem/deploy/lab"
)

// Cluster is one Kubernetes. Its methods are not safe for concurrent use, but for Kubectl.
type Cluster struct {
	Name string

	world  *World
	number int // of its first node
	pki    *authority
	nodes  []*Node
}

// NewCluster makes a cluster of these nodes, of which the first has the control plane as well, starts it and waits until all nodes are Ready. Names of nodes
// are unique in the world.
func (w *World) NewCluster(ctx context.Context, name string, nodes ...string) (*Cluster, error) {
	c := &Cluster{Name: name, world: w, number: w.nodes}
	dir := filepath.Join(w.dir, name+"-pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if c.pki, err = newAuthority(dir, "ca of "+name); err != nil {
		return nil, err
	}
	if err := c.certify(); err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if _, err := c.newNode(ctx, n); err != nil {
			return nil, err
		}
	}
	for i, n := range c.nodes {
		if err := n.Start(ctx); err != nil {
			return nil, err
		}
		if i == 0 {
			if err := c.apiReady(ctx); err != nil {
				return nil, err
			}
		}
	}
	return c, c.Ready(ctx, nodes...)
}

// certify makes the certificates of the control plane.
func (c *Cluster) certify() error {
	first, service := net.ParseIP(c.address()), net.ParseIP(c.serviceIP(1))
	api := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"}
	errs := []error{
		c.pki.serviceAccounts(),
		c.pki.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"}, api, net.IPv4(127, 0, 0, 1), first, service),
		c.pki.issue("front", pkix.Name{CommonName: "front-proxy"}, nil),
		c.pki.issue("admin", pkix.Name{Organization: []string{"system:masters"}, CommonName: "admin"}, nil),
	}
	for file, user := range map[string]string{"controllers": "system:kube-controller-manager", "scheduler": "system:kube-scheduler", "proxy": "system:kube-proxy"} {
		errs = append(errs, c.pki.issue(file, pkix.Name{CommonName: user}, nil), c.pki.kubeconfig(file, c.server()))
	}
	return errors.Join(append(errs, c.pki.kubeconfig("admin", c.server()))...)
}

// address is that of the first node.
func (c *Cluster) address() string {
	return fmt.Sprintf(strings.TrimSuffix(nodeAddress, "/24"), firstNode+c.number)
}

func (c *Cluster) server() string { return "https://" + net.JoinHostPort(c.address(), "6443") }

// serviceIP is the kth address of services.
func (c *Cluster) serviceIP(k int) string { return fmt.Sprintf("10.%d.0.%d", 100+c.number, k) }

func (c *Cluster) bin(program string) string { return filepath.Join(c.world.bin, program) }
func (c *Cluster) conf(user string) string   { return filepath.Join(c.pki.dir, user+".conf") }

// Node returns the node of that name, nil if there is none.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// controlPlane is what runs in the first node besides.
func (c *Cluster) controlPlane(n *Node) []nodeplan.Program {
	pki := func(file string) string { return filepath.Join(c.pki.dir, file) }
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	controllers, scheduler := c.conf("controllers"), c.conf("scheduler")
	return []nodeplan.Program{
		n.program("etcd", c.bin("etcd"), "--name", "only", "--data-dir", filepath.Join(n.dir, "etcd"), "--log-level", "warn", "--unsafe-no-fsync",
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "only="+peer),
		n.program("kube-apiserver", c.bin("kube-apiserver"), "--etcd-servers", client, "--bind-address", "0.0.0.0", "--advertise-address", n.Address,
			"--secure-port", "6443", "--tls-cert-file", pki("apiserver.crt"), "--tls-private-key-file", pki("apiserver.key"), "--client-ca-file", pki("ca.crt"),
			"--kubelet-client-certificate", pki("admin.crt"), "--kubelet-client-key", pki("admin.key"), "--kubelet-preferred-address-types", "InternalIP",
			"--requestheader-client-ca-file", pki("ca.crt"), "--requestheader-allowed-names", "front-proxy", "--requestheader-username-headers", "X-Remote-User",
			"--requestheader-group-headers", "X-Remote-Group", "--requestheader-extra-headers-prefix", "X-Remote-Extra-",
			"--proxy-client-cert-file", pki("front.crt"), "--proxy-client-key-file", pki("front.key"), "--enable-aggregator-routing",
			"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", pki("sa.pub"), "--service-account-signing-key-file", pki("sa.key"),
			"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--service-cluster-ip-range", c.serviceIP(0)+"/16",
			"--allow-privileged", "--endpoint-reconciler-type", "lease"),
		n.program("kube-controller-manager", c.bin("kube-controller-manager"), "--kubeconfig", controllers, "--authentication-kubeconfig", controllers,
			"--authorization-kubeconfig", controllers, "--use-service-account-credentials", "--service-account-private-key-file", pki("sa.key"),
			"--root-ca-file", pki("ca.crt"), "--cluster-signing-cert-file", pki("ca.crt"), "--cluster-signing-key-file", pki("ca.key"),
			"--leader-elect=false", "--bind-address", "127.0.0.1", "--attach-detach-reconcile-sync-period", "5s", "--pvclaimbinder-sync-period", "2s"),
		n.program("kube-scheduler", c.bin("kube-scheduler"), "--kubeconfig", scheduler, "--authentication-kubeconfig", scheduler,
			"--authorization-kubeconfig", scheduler, "--leader-elect=false", "--bind-address", "127.0.0.1"),
	}
}

// startLimit is how long a part of a cluster may take to come up: far longer than it does.
const startLimit = 2 * time.Minute

// apiReady waits for the API, and lets kube-proxy use it.
func (c *Cluster) apiReady(ctx context.Context) error {
	err := lab.Until(ctx, "API of "+c.Name, startLimit, 200*time.Millisecond, func() (bool, error) {
		if err := c.nodes[0].proc.Died(); err != nil {
			return false, lab.Final(err)
		}
		_, err := c.Kubectl(ctx, "", "get", "--raw", "/readyz")
		return err == nil, err
	})
	if err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "", "create", "clusterrolebinding", "kube-proxy", "--clusterrole", "system:node-proxier", "--user", "system:kube-proxy")
	return err
}

// Ready waits until these nodes are Ready, and pods can be made.
func (c *Cluster) Ready(ctx context.Context, nodes ...string) error {
	for _, n := range nodes {
		err := lab.Until(ctx, "node "+n+" is Ready", startLimit, 200*time.Millisecond, func() (bool, error) {
			out, err := c.Kubectl(ctx, "", "get", "node", n, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			return out == "True", err
		})
		if err != nil {
			return err
		}
	}
	return lab.Until(ctx, "service account", startLimit, 200*time.Millisecond, func() (bool, error) {
		_, err := c.Kubectl(ctx, "", "-n", "default", "get", "serviceaccount", "default")
		return err == nil, err
	})
}

// Kubectl runs kubectl as an administrator, with its standard input, and returns its output. The error has what it wrote to standard error.
func (c *Cluster) Kubectl(ctx context.Context, input string, args ...string) (string, error) {
	return c.administer(ctx, "kubectl", input, args...)
}

// Helm is Kubectl for helm, whose own files are below the directory of the world.
func (c *Cluster) Helm(ctx context.Context, input string, args ...string) (string, error) {
	return c.administer(ctx, "helm", input, args...)
}

func (c *Cluster) administer(ctx context.Context, program, input string, args ...string) (string, error) {
	argv := c.world.space.Inside(append([]string{c.bin(program), "--kubeconfig", c.conf("admin")}, args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = strings.NewReader(input), &out, &errOut, "/"
	cmd.Env = append(os.Environ(), "HOME="+filepath.Join(c.world.dir, "home"))
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

//go:build kube

package kube

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// systemctl is what Kubernetes' tests ask systemd for: the kubelet. %q is the file that keeps it from being started.
const systemctl = `#!/bin/sh
off=%q
case "$*" in
"stop kubelet")
	touch "$off"
	for p in $(pidof kubelet); do
		kill "$p"
		while [ -d "/proc/$p" ]; do sleep 0.1; done
	done ;;
"start kubelet") rm -f "$off" ;;
"show kubelet --property ActiveState --value")
	if [ -e "$off" ]; then echo inactive; else echo active; fi ;;
*)
	echo "systemctl: this node knows the kubelet only: $*" >&2
	exit 1 ;;
esac
`

// shellKey is the file of the key for shells of nodes.
func (w *World) shellKey() string { return filepath.Join(w.dir, "shell.key") }

// makeShellKey makes that key.
func (w *World) makeShellKey() error {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(w.shellKey(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// shell lets into the node over SSH, at port 22 of its address, who has the key, as long as the node runs. There systemctl stops and starts the kubelet.
func (n *Node) shell() error {
	bin := filepath.Join(n.dir, "shell")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bin, "systemctl"), fmt.Appendf(nil, systemctl, n.kubeletOff()), 0o755); err != nil {
		return err
	}
	argv, err := n.inside(n.cluster.bin("nodeshell"), net.JoinHostPort(n.Address, "22"), n.cluster.world.shellKey(), bin+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if err != nil {
		return err
	}
	_, err = lab.StartProcess("shell of "+n.Name, filepath.Join(n.dir, "log", "shell.log"), nil, argv...)
	return err
}

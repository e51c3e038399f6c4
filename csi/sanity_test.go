package csi

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"go.uber.org/zap/zaptest"
)

// TestSanity runs the specification's own tests, each call ten times over.
func TestSanity(t *testing.T) {
	dir := t.TempDir()
	c := newCluster()
	d := New(Options{Node: "node-a", Domain: "a", Version: "test", Backend: c, Mounter: c.machine, Logger: zaptest.NewLogger(t)})
	l, err := net.Listen("unix", filepath.Join(dir, "csi.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := d.Server()
	go func() { _ = s.Serve(l) }() // ends with Stop
	defer s.Stop()
	cfg := sanity.NewTestConfig()
	cfg.Address = "unix://" + l.Addr().String()
	cfg.TargetPath, cfg.StagingPath = filepath.Join(dir, "target"), filepath.Join(dir, "staging")
	cfg.IdempotentCount = 10
	cfg.TestNodeVolumeAttachLimit = false // no bound of attached volumes is enforced
	cfg.TestVolumeMutableParameters = map[string]string{"protection": "max-protection"}
	sanity.Test(t, cfg)
}

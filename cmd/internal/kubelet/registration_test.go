package kubelet

import (
	"net"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// TestRegistration is what a kubelet asks and says.
func TestRegistration(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "reg.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.InfoLevel)
	s := NewServer(Options{Driver: "csi.example", Socket: "/plugins/csi.example/csi.sock", Logger: zap.New(core)})
	go func() { _ = s.Serve(l) }() // ends with Stop
	t.Cleanup(s.Stop)
	cc, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	c := registration.NewRegistrationClient(cc)
	info, err := c.GetInfo(t.Context(), &registration.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetType() != "CSIPlugin" || info.GetName() != "csi.example" || info.GetEndpoint() != "/plugins/csi.example/csi.sock" || !slices.Equal(info.GetSupportedVersions(), []string{"1.0.0"}) {
		t.Errorf("got %v", info)
	}
	for _, said := range []*registration.RegistrationStatus{{PluginRegistered: true}, {Error: "no such file"}} {
		if _, err := c.NotifyRegistrationStatus(t.Context(), said); err != nil {
			t.Fatal(err)
		}
	}
	var levels []zapcore.Level
	for _, e := range logs.All() {
		levels = append(levels, e.Level)
	}
	if !slices.Equal(levels, []zapcore.Level{zapcore.InfoLevel, zapcore.ErrorLevel}) {
		t.Errorf("logged %v", logs.All())
	}
	if got := logs.All()[1].ContextMap()["reason"]; got != "no such file" {
		t.Errorf("the reason is %q", got)
	}
}

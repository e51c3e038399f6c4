package main

import (
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	domainpb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
)

// The ways to name an endpoint, through real sockets.
func TestEndpoints(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "tandemd.sock")
	unix, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	domainpb.RegisterClusterServer(srv, fixture())
	for _, ln := range []net.Listener{unix, tcp} {
		go func() { _ = srv.Serve(ln) }() // ends with Stop
	}
	t.Cleanup(srv.Stop)

	for _, tc := range []struct {
		endpoint string
		env      bool
		want     rpcstatus.Exit
	}{
		{endpoint: socket},
		{endpoint: "unix:" + socket},
		{endpoint: "unix://" + socket},
		{endpoint: socket, env: true},
		{endpoint: tcp.Addr().String()},
		{endpoint: "localhost:" + port},
		{endpoint: socket + ".not", want: rpcstatus.ExitUnavailable},
		{endpoint: "10.0.0.1:" + port, want: rpcstatus.ExitUsage},
		{endpoint: "localhost:", want: rpcstatus.ExitUsage},
		{endpoint: "unix:", want: rpcstatus.ExitUsage},
	} {
		h := newHarness(t, nil)
		h.dial = grpc.NewClient
		args := []string{"status"}
		if tc.env {
			h.env[envEndpoint] = tc.endpoint
		} else {
			args = append(args, "--endpoint", tc.endpoint)
		}
		if code := h.run(t.Context(), args); code != tc.want {
			t.Errorf("%s: exit code %d, want %d: %s", tc.endpoint, code, tc.want, h.err.String())
		}
	}
}

package nbd

import (
	"encoding/binary"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
)

// TestExpected is a client that comes back to a server that was restarted before it is known whether its attachment goes on.
func TestExpected(t *testing.T) {
	for _, tc := range []struct {
		name string
		then func(s *Server)
		want uint32 // the first reply; 0 none, the client is to try again
	}{
		{"it does", func(s *Server) { attach(t, s, "vol.1", newMem(false)) }, repInfo},
		{"it does not", func(s *Server) { s.Forgo("vol.1") }, repErrUnknown},
		{"another one does", func(s *Server) { attach(t, s, "vol.2", newMem(false)); s.Forgo("vol.1") }, repErrUnknown},
		{"nobody knows yet", func(*Server) {}, 0},
		{"the server ends", func(s *Server) { close(s.closing) }, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{
					lg: zap.NewNop(), handshakeTimeout: handshakeTimeout, closing: make(chan struct{}),
					listeners: []*listener{{endpoint: Endpoint{Network: "unix", Address: "/run/nbd.sock"}}},
					exports:   map[string]*export{}, expected: map[string]chan struct{}{"vol.1": make(chan struct{})},
				}
				h := &handshake{srv: s, endpoint: &Endpoint{}, structured: true}
				asked := make(chan error, 1)
				go func() { asked <- h.dispatch(optGo, infoData("vol.1")) }()
				synctest.Wait()
				select {
				case err := <-asked:
					t.Fatalf("answered before it was decided: %v, % x", err, h.out)
				default:
				}
				tc.then(s)
				err := <-asked
				switch {
				case tc.want == 0 && (err == nil || len(h.out) > 0):
					t.Errorf("answered % x, want a hang-up", h.out)
				case tc.want != 0 && (err != nil || binary.BigEndian.Uint32(h.out[12:]) != tc.want):
					t.Errorf("answered % x, %v; want %#x", h.out, err, tc.want)
				}
			})
		})
	}
}

// TestClosingServerDeniesNothing: a client that asks a server which is closing comes back to the next one.
func TestClosingServerDeniesNothing(t *testing.T) {
	s := startServer(t)
	attach(t, s, "vol", newMem(false))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, opt := range []uint32{optInfo, optGo} {
		h := &handshake{srv: s, endpoint: &Endpoint{}}
		if err := h.dispatch(opt, infoData("vol")); err != nil || binary.BigEndian.Uint32(h.out[12:]) != repErrShutdown {
			t.Errorf("option %d is answered % x, %v", opt, h.out, err)
		}
	}
}

package kvdbtest

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
)

var lastPort atomic.Uint32

func init() { lastPort.Store(uint32(os.Getpid()) * 37) }

// FreeAddress returns a loopback address that was free a moment ago and that no
// outgoing connection takes, because it is below the kernel's ephemeral range.
// A server that is to come back where it was needs one.
func FreeAddress(t testing.TB) string {
	t.Helper()
	for range 200 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+lastPort.Add(1)%18000))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return l.Addr().String()
	}
	t.Fatal("no free port")
	return ""
}

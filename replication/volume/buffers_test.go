package volume

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
)

// mapped is how many bytes of memory this process has mapped beside what the Go
// runtime has: buffers, above all.
func mapped(t *testing.T) int64 {
	t.Helper()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmData:")
	var kib int64
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	return kib<<10 - int64(m.Sys)
}

// TestBuffersComeBack: reads, writes, an eviction and a resync give every buffer back.
func TestBuffersComeBack(t *testing.T) {
	const (
		length = 256 << 10
		count  = 1000 // x length: much more than what may be kept for the next user
		much   = length * count / 3
	)
	c := newTestCluster(t, 64<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	p := make([]byte, length)
	round := func() {
		for i := range int64(count) {
			p[0] = byte(i)
			off := i * length % v.Info().Size
			if err := block.WriteAt(v, p, off, 0); err != nil {
				t.Fatal(err)
			}
			if err := block.ReadAt(v, p, off); err != nil {
				t.Fatal(err)
			}
			if i == count/2 {
				c.net.Down(b.id)
				c.awaitInSync(1)
			}
		}
		c.net.Up(b.id)
		c.awaitInSync(2)
	}
	round()
	before := mapped(t)
	round()
	if grown := mapped(t) - before; grown > much {
		t.Errorf("%d MiB of memory were not given back by %d writes and reads of %d KiB", grown>>20, count, length>>10)
	}
}

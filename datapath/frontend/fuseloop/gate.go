package fuseloop

import (
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
)

// gate lets requests through to a device until it is closed. It never closes
// the device, which is the caller's.
type gate struct {
	dev block.Device

	mu   sync.RWMutex // held for reading while a request is handed on
	shut bool
}

// Submit implements block.Device.
func (g *gate) Submit(batch []*block.Request) {
	g.mu.RLock()
	if !g.shut {
		g.dev.Submit(batch)
		g.mu.RUnlock()
		return
	}
	g.mu.RUnlock()
	for _, r := range batch {
		r.By.Complete(r, block.ErrClosed)
	}
}

// Info implements block.Device.
func (g *gate) Info() block.Info { return g.dev.Info() }

// Close implements block.Device.
func (g *gate) Close() error {
	g.close()
	return nil
}

// close returns when no request will reach the device any more. Those that have
// reached it end by themselves.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
}

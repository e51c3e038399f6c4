package nbd

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

// growing is a device of which so many bytes are shown.
type growing struct {
	*blocktest.Mem
	size atomic.Int64
}

func (g *growing) Info() block.Info {
	i := g.Mem.Info()
	i.Size = g.size.Load()
	return i
}

// TestDeviceRefresh: a device has the new size of its export when it asks for it, on the connection that it has. Requests that are under way stay so, and nothing
// is sent again.
func TestDeviceRefresh(t *testing.T) {
	const small, large = 1 << 20, 4 << 20
	socket := socketPath(t)
	s := startServer(t, Endpoint{Network: "unix", Address: socket})
	g := &growing{Mem: blocktest.NewMem(blocktest.MemOptions{Size: large, Seed: 1})}
	g.size.Store(small)
	held := blocktest.NewDelay(g)
	attach(t, s, "vol", held)
	d := open(t, socket)
	data := bytes.Repeat([]byte{7}, 4096)
	if err := block.WriteAt(d, data, small, 0); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("behind the end: %v", err)
	}
	held.Pause(blocktest.BeforeStart, nil)
	defer held.Resume()
	flying := make(chan error, 1)
	go func() { flying <- block.WriteAt(d, data, 0, 0) }()
	held.WaitHeld(1)
	g.size.Store(large)
	if n := d.Info().Size; n != small {
		t.Errorf("before it asks it has %d bytes", n)
	}
	for range 2 { // again is no harm
		if err := d.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.Info().Size; n != large {
		t.Errorf("it has %d bytes", n)
	}
	select {
	case err := <-flying:
		t.Errorf("a request that is under way has ended: %v", err)
	default:
	}
	held.Resume()
	if err := <-flying; err != nil {
		t.Errorf("a request that was under way: %v", err)
	}
	if err := block.WriteAt(d, data, large-4096, 0); err != nil {
		t.Errorf("at the new end: %v", err)
	}
	got := make([]byte, 4096)
	if err := block.ReadAt(d, got, large-4096); err != nil || !bytes.Equal(got, data) {
		t.Errorf("at the new end it reads %d, %v", got[0], err)
	}

	// Smaller it is another one: nothing changes. So it is for a connection after this one.
	g.size.Store(small)
	if err := d.Refresh(t.Context()); !errors.Is(err, ErrNoExport) || d.Info().Size != large {
		t.Errorf("smaller: %v, %d bytes", err, d.Info().Size)
	}
	g.size.Store(large)
	if err := block.Flush(d); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Refresh(t.Context()); err == nil {
		t.Error("the server is gone")
	}
	g.size.Store(small)
	again, err := Listen(Options{Endpoints: []Endpoint{{Network: "unix", Address: socket}}, Expected: []string{"vol"}})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	attach(t, again, "vol", g)
	<-d.Done() // which had been told of more
	if err := d.Err(); !errors.Is(err, ErrNoExport) {
		t.Errorf("it has ended with %v", err)
	}
	if err := d.Refresh(t.Context()); !errors.Is(err, ErrNoExport) {
		t.Errorf("ended: %v", err)
	}
}

package nbd

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

// TestWindowRules: the bound is of all sessions together, who waits comes in order, and a session that has nothing is let in.
func TestWindowRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(4, 100)
		a, b, c, d := w.share(), w.share(), w.share(), w.share()
		if !a.enter(60) || !b.enter(20) || a.enter(21) || !c.enter(15) || !a.enter(5) || b.enter(0) {
			t.Fatal("not 4 requests and 100 bytes, of all together")
		}
		a.leave(1, 5)
		var mu sync.Mutex
		var order []string
		await := func(name string, s *share, n int64) {
			go func() {
				if !s.await(n, nil) {
					t.Errorf("%s was not let in", name)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
			}()
			synctest.Wait()
		}
		await("a", a, 50)
		await("b", b, 5) // there is room for it, but a was first
		if c.enter(1) {
			t.Error("passed those who wait")
		}
		await("d", d, 90) // has nothing yet
		if len(order) != 1 || order[0] != "d" {
			t.Fatalf("let in: %v, want d, which has nothing in the window", order)
		}
		d.leave(1, 90)
		synctest.Wait()
		if len(order) != 1 {
			t.Fatalf("let in: %v, though there is no room for a", order)
		}
		c.leave(1, 15)
		synctest.Wait()
		if len(order) != 1 {
			t.Fatalf("let in: %v, though there is no room for a", order)
		}
		a.leave(1, 60)
		synctest.Wait()
		if len(order) != 3 {
			t.Fatalf("let in: %v, want a and b when there is room", order)
		}
		a.leave(1, 50)
		b.leave(2, 25)
		if n := w.used.Load(); n != 0 {
			t.Errorf("%#x is used by nobody", n)
		}
	})
}

// TestWindowQuit: a session that gives up is not in the way of others, and keeps nothing that it was given meanwhile.
func TestWindowQuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(4, 100)
		a, b := w.share(), w.share()
		a.enter(50)
		b.enter(30)
		quit := make(chan struct{})
		first, second := make(chan bool, 1), make(chan bool, 1)
		go func() { first <- a.await(100, quit) }()
		synctest.Wait()
		go func() { second <- b.await(10, nil) }()
		synctest.Wait()
		close(quit)
		if <-first {
			t.Error("a session that gave up was let in")
		}
		synctest.Wait()
		select {
		case <-second:
		default:
			t.Fatal("the next was not let in")
		}
		a.leave(1, 50)
		b.leave(2, 40)
		for range 100 { // let in and to give up at the same time
			if a.await(10, quit) {
				a.leave(1, 10)
			}
		}
		if n := w.used.Load(); n != 0 || a.held.Load() != 0 {
			t.Errorf("%#x is used by nobody", n)
		}
	})
}

// TestWindowBound lets sessions come and go at random: the bound is kept but for one request each, and nobody waits for ever.
func TestWindowBound(t *testing.T) {
	const sessions, requests, size = 8, 16, 1 << 16
	w := newWindow(requests, size)
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			s := w.share()
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			var held []int64
			for range 3000 {
				n := rng.Int64N(size / 2)
				if !s.enter(n) {
					// As when its replies are written: by another goroutine, while this one waits.
					done := make(chan struct{})
					mine := held
					held = nil
					go func() {
						for _, n := range mine {
							s.leave(1, n)
						}
						close(done)
					}()
					if !s.await(n, nil) {
						t.Error("not let in")
					}
					<-done
				}
				held = append(held, n)
				if used := w.used.Load(); used/requestUnit > requests+sessions || used%requestUnit > size+sessions*size/2 {
					t.Errorf("%d requests and %d bytes are in the window", used/requestUnit, used%requestUnit)
				}
			}
			for _, n := range held {
				s.leave(1, n)
			}
		})
	}
	wg.Wait()
	if n := w.used.Load(); n != 0 || len(w.queue) != 0 || w.waiters.Load() != 0 {
		t.Errorf("%#x is used by nobody, %d wait", n, len(w.queue))
	}
}

// TestWindowOfExport: what is in flight is bounded for all clients of an export together, and not for another export's.
func TestWindowOfExport(t *testing.T) {
	const most, clients, each = 8, 4, 20
	s := startServer(t)
	s.maxRequests = most
	held := blocktest.NewDelay(newMem(false))
	held.Pause(blocktest.BeforeStart, nil)
	attach(t, s, "vol", held)
	attach(t, s, "other", newMem(false))
	var b []byte
	for i := range each {
		b = appendRequest(b, header{cmd: cmdRead, cookie: uint64(i), n: 4096})
	}
	cs := make([]*client, clients)
	for i := range cs {
		cs[i] = dial(t, s)
		cs[i].goExport("vol")
		cs[i].write(b)
		held.WaitHeld(most + i) // the first fills the window, the others have one each
	}
	o := dial(t, s)
	o.goExport("other")
	o.write(b)
	for i := range each {
		o.cookie = uint64(i)
		o.wantRead(4096)
	}
	for range clients * each {
		if n := held.Held(); n > most+clients-1 {
			t.Fatalf("%d requests at the device, at most %d are allowed", n, most+clients-1)
		}
		for held.Step(1) == 0 {
			held.WaitHeld(1)
		}
	}
	for _, c := range cs {
		seen := map[byte]bool{}
		for range each {
			head := c.read(simpleHead + 4096)
			seen[head[simpleHead-1]] = true
		}
		if len(seen) != each {
			t.Errorf("%d of %d requests were replied to", len(seen), each)
		}
	}
}

// TestDeafNeighbour: a client that takes no replies does not stop another of the same export.
func TestDeafNeighbour(t *testing.T) {
	s := startServer(t)
	rec := blocktest.NewRecord(newMem(false))
	attach(t, s, "vol", rec)
	deaf := dial(t, s)
	deaf.goExport("vol")
	var b []byte
	for i := range maxBytes/maxPayload + 20 {
		b = appendRequest(b, header{cmd: cmdRead, cookie: uint64(i), n: maxPayload})
	}
	deaf.write(b)
	if err := rec.Wait(t.Context(), func(e blocktest.Event) bool { return e.Done && e.ID >= maxBytes/maxPayload-1 }); err != nil {
		t.Fatal(err)
	}
	c := dial(t, s)
	c.goExport("vol")
	data := bytes.Repeat([]byte{7}, maxPayload)
	for i := range 10 {
		c.request(cmdWrite, 0, uint64(i)*maxPayload, maxPayload, data)
		c.wantSimple(0)
		c.request(cmdRead, 0, uint64(i)*maxPayload, maxPayload, nil)
		c.wantRead(maxPayload)
	}
}

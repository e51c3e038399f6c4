package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend"
)

// TestErrors checks which error of the protocol a client gets for what the device says.
func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want errno
	}{
		{block.ErrIO, errnoIO},
		{errors.New("replication: anything else"), errnoIO},
		{block.ErrNoSpace, errnoNoSpace},
		{fmt.Errorf("pool: %w", block.ErrNoSpace), errnoNoSpace},
		{block.ErrClosed, errnoShutdown},
		{block.ErrMisaligned, errnoInval},
		{block.ErrInvalid, errnoInval},
		{block.ErrTooLarge, errnoInval},
		{block.ErrNotSupported, errnoInval},
	} {
		for _, structured := range []bool{false, true} {
			s := startServer(t)
			d := blocktest.NewInject(newMem(false))
			d.Add(blocktest.Rule{Err: tc.err})
			attach(t, s, "vol", d)
			c := dial(t, s)
			if structured {
				c.useStructured()
			}
			c.goExport("vol")
			for _, cmd := range []uint16{cmdRead, cmdTrim, cmdWriteZeroes} {
				c.request(cmd, 0, 0, 4096, nil)
				c.wantError(tc.want)
			}
			c.request(cmdWrite, 0, 0, 4096, make([]byte, 4096))
			c.wantError(tc.want)
			c.request(cmdFlush, 0, 0, 0, nil)
			c.wantError(tc.want)
			d.Clear()
			c.request(cmdRead, 0, 0, 4096, nil)
			c.wantRead(4096)
		}
	}
}

// TestMissingCaps checks that what a device cannot do is neither advertised nor served.
func TestMissingCaps(t *testing.T) {
	for _, tc := range []struct {
		without block.Caps
		flag    uint16
		cmd     uint16
		flags   uint16
	}{
		{block.CapDiscard, flagSendTrim, cmdTrim, 0},
		{block.CapWriteZeroes, flagSendWriteZeroes, cmdWriteZeroes, 0},
		{block.CapFUA, flagSendFUA, cmdTrim, cmdFlagFUA},
	} {
		s := startServer(t)
		rec := blocktest.NewRecord(blocktest.NewMem(blocktest.MemOptions{Size: testSize, Without: tc.without}))
		attach(t, s, "vol", rec)
		c := dial(t, s)
		c.sendOption(optGo, infoData("vol"))
		_, data := c.optionReply(optGo)
		c.optionReply(optGo)
		c.optionReply(optGo)
		if f := binary.BigEndian.Uint16(data[10:]); f&tc.flag != 0 {
			t.Errorf("flags %#x have %#x, which the device lacks", f, tc.flag)
		}
		c.request(tc.cmd, tc.flags, 0, 4096, nil)
		c.wantError(errnoInval)
		if len(rec.History()) != 0 {
			t.Errorf("the device was asked: %v", rec)
		}
	}
}

// TestPartsOfBlocks checks that a request for a part of a block is refused: the device never has to read, change and write a
// block, which would undo what is written to the rest of it meanwhile.
func TestPartsOfBlocks(t *testing.T) {
	s := startServer(t)
	rec := blocktest.NewRecord(newMem(false))
	attach(t, s, "vol", rec)
	c := dial(t, s)
	c.goExport("vol")
	for _, cmd := range []uint16{cmdRead, cmdWrite, cmdTrim, cmdWriteZeroes} {
		for _, part := range []struct {
			off uint64
			n   uint32
		}{{512, 4096}, {4096, 512}, {1, 1}, {8191, 4097}} {
			var payload []byte
			if cmd == cmdWrite {
				payload = make([]byte, part.n)
			}
			c.request(cmd, 0, part.off, part.n, payload)
			c.wantError(errnoInval)
		}
	}
	if len(rec.History()) != 0 {
		t.Errorf("the device was asked: %v", rec)
	}
}

// TestProtocolViolations checks that nonsense ends the connection after the replies to what came before.
func TestProtocolViolations(t *testing.T) {
	s := startServer(t)
	attach(t, s, "vol", newMem(false))
	for name, b := range map[string][]byte{
		"no magic":      bytes.Repeat([]byte{0x25}, requestHead),
		"endless write": appendRequest(nil, header{cmd: cmdWrite, n: maxSkip + 1}),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, s)
			c.goExport("vol")
			c.cookie = 5
			c.write(append(appendRequest(nil, header{cmd: cmdFlush, cookie: 5}), b...))
			c.wantSimple(0)
			c.wantEOF()
		})
	}
	t.Run("cut off in a payload", func(t *testing.T) {
		rec := blocktest.NewRecord(newMem(false))
		a := attach(t, s, "cut", rec)
		c := dial(t, s)
		c.goExport("cut")
		c.request(cmdWrite, 0, 0, 1<<20, make([]byte, 1<<19))
		c.conn.Close()
		if err := a.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(rec.History()) != 0 {
			t.Errorf("half a write reached the device: %v", rec)
		}
	})
}

// TestDisconnectDrains checks that what was sent before NBD_CMD_DISC is carried out and replied to.
func TestDisconnectDrains(t *testing.T) {
	s := startServer(t)
	held := blocktest.NewDelay(newMem(false))
	held.Pause(blocktest.BeforeCompletion, nil)
	attach(t, s, "vol", held)
	c := dial(t, s)
	c.goExport("vol")
	c.request(cmdWrite, 0, 4096, 4096, bytes.Repeat([]byte{9}, 4096))
	last := c.cookie
	c.request(cmdDisc, 0, 0, 0, nil)
	held.WaitHeld(1)
	held.Resume()
	c.cookie = last
	c.wantSimple(0)
	c.wantEOF()
}

// TestWindow checks that a client can have only so much in flight, and gets all replies in the end.
func TestWindow(t *testing.T) {
	for _, tc := range []struct {
		name  string
		each  uint32
		total int
		most  int
	}{
		{"requests", 4096, defaultRequests + 50, defaultRequests},
		{"bytes", maxPayload, maxBytes/maxPayload + 5, maxBytes / maxPayload},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := startServer(t)
			held := blocktest.NewDelay(newMem(false))
			held.Pause(blocktest.BeforeStart, nil)
			attach(t, s, "vol", held)
			c := dial(t, s)
			c.goExport("vol")
			var b []byte
			for i := range tc.total {
				b = appendRequest(b, header{cmd: cmdRead, cookie: uint64(i), n: tc.each})
			}
			go c.conn.Write(b)
			held.WaitHeld(tc.most)
			// The rest comes only as replies are taken, one for one.
			for i := range tc.total {
				if n := held.Held(); n > tc.most {
					t.Fatalf("%d requests at the device, at most %d are allowed", n, tc.most)
				}
				for held.Step(1) == 0 {
					held.WaitHeld(1)
				}
				c.cookie = uint64(i)
				c.wantRead(int(tc.each))
			}
		})
	}
}

// TestSlowReader checks that a client that sends much and takes no replies costs no more than its window, and loses nothing.
func TestSlowReader(t *testing.T) {
	onDevices(t, func(t *testing.T, d block.Device) {
		s := startServer(t)
		rec := blocktest.NewRecord(d)
		attach(t, s, "vol", rec)
		for i := range 64 {
			if err := block.WriteAt(d, bytes.Repeat([]byte{byte(i)}, 1<<20), int64(i)<<20, 0); err != nil {
				t.Fatal(err)
			}
		}
		c := dial(t, s)
		c.useStructured()
		c.goExport("vol")
		const total = 150
		var b []byte
		for i := range total {
			b = appendRequest(b, header{cmd: cmdRead, cookie: uint64(i), off: uint64(i%64) << 20, n: 1 << 20})
		}
		c.write(b)
		if err := rec.Wait(t.Context(), func(e blocktest.Event) bool { return e.Done && e.ID >= maxBytes>>20-1 }); err != nil {
			t.Fatal(err)
		}
		if n := rec.Completed(block.OpRead); n > maxBytes>>20+16 { // and what the socket took
			t.Errorf("%d reads of 1 MiB were carried out for a client that takes no replies", n)
		}
		seen := map[uint64]bool{}
		for range total {
			head := c.read(structuredHead + 8)
			cookie := binary.BigEndian.Uint64(head[8:])
			data := c.read(1 << 20)
			if seen[cookie] || !bytes.Equal(data, bytes.Repeat([]byte{byte(cookie % 64)}, 1<<20)) {
				t.Fatalf("reply to %d is doubled or wrong", cookie)
			}
			seen[cookie] = true
		}
	})
}

// TestBytewise sends requests one byte at a time.
func TestBytewise(t *testing.T) {
	s := startServer(t)
	attach(t, s, "vol", newMem(false))
	c := dial(t, s)
	c.goExport("vol")
	data := bytes.Repeat([]byte("tandem.."), 512)
	c.cookie = 1
	b := append(appendRequest(nil, header{cmd: cmdWrite, cookie: 1, off: 4096, n: 4096}), data...)
	for i := range b {
		c.write(b[i : i+1])
	}
	c.wantSimple(0)
	c.request(cmdRead, 0, 4096, 4096, nil)
	if got := c.wantRead(4096); !bytes.Equal(got, data) {
		t.Error("read other data than was written")
	}
}

// TestCrash checks the promise of FUA and flush through the protocol: after a power cut the device has what they covered.
func TestCrash(t *testing.T) {
	s := startServer(t)
	d := newMem(false)
	attach(t, s, "vol", d)
	a, b := dial(t, s), dial(t, s)
	a.goExport("vol")
	b.goExport("vol")
	one, two := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	a.request(cmdWrite, cmdFlagFUA, 0, 4096, one)
	a.wantSimple(0)
	a.request(cmdWrite, 0, 4096, 4096, two)
	a.wantSimple(0)
	b.request(cmdFlush, 0, 0, 0, nil) // on the other connection
	b.wantSimple(0)
	a.request(cmdWrite, 0, 8192, 4096, one)
	a.wantSimple(0)
	after := d.CrashClone(blocktest.CrashOptions{})
	got := make([]byte, 3*4096)
	if err := block.ReadAt(after, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:4096], one) || !bytes.Equal(got[4096:8192], two) {
		t.Error("a write that was stable is gone after the crash")
	}
}

// TestEOFWhileHeld checks that a client that vanishes leaves its requests to the device until they complete.
func TestEOFWhileHeld(t *testing.T) {
	s := startServer(t)
	held := blocktest.NewDelay(newMem(false))
	held.Pause(blocktest.BeforeCompletion, nil)
	a := attach(t, s, "vol", held)
	c := dial(t, s)
	c.goExport("vol")
	c.request(cmdRead, 0, 0, 4096, nil)
	held.WaitHeld(1)
	_ = c.conn.Close()
	s.detachGrace = 0
	if err := a.Detach(t.Context()); !errors.Is(err, frontend.ErrBusy) {
		t.Error("detached while the device had a request of the client")
	}
	s.detachGrace = 20 * time.Second
	held.Resume()
	if err := a.Detach(t.Context()); err != nil {
		t.Error(err)
	}
}

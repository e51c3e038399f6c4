package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

// open dials the export "vol".
func open(t testing.TB, socket string) *Device {
	t.Helper()
	d, err := Dial(t.Context(), DialOptions{Socket: socket, Export: "vol", Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestDeviceConforms(t *testing.T) {
	for _, blockSize := range []int{512, 4096} {
		for _, async := range []bool{false, true} {
			blocktest.Run(t, fmt.Sprintf("%d async=%v", blockSize, async), func(t *testing.T, size int64) block.Device {
				s := startServer(t)
				attach(t, s, "vol", blocktest.NewMem(blocktest.MemOptions{Size: size, BlockSize: blockSize, Async: async, Seed: 1}))
				return open(t, s.Addr(0).String())
			})
		}
	}
}

// TestDeviceOfStrangers checks the device over servers that nobody of this project wrote.
func TestDeviceOfStrangers(t *testing.T) {
	for name, argv := range map[string]func(socket string, size int64) []string{
		"nbdkit": func(socket string, size int64) []string {
			return []string{"nbdkit", "--foreground", "--exit-with-parent", "--unix", socket, "--export", "vol", "memory", strconv.FormatInt(size, 10)}
		},
		"nbdkit, small requests": func(socket string, size int64) []string {
			return []string{"nbdkit", "--foreground", "--exit-with-parent", "--unix", socket, "--filter=blocksize-policy", "memory", strconv.FormatInt(size, 10),
				"blocksize-minimum=4K", "blocksize-preferred=4K", "blocksize-maximum=64K", "blocksize-error-policy=error"}
		},
		"nbdkit, no zeroes": func(socket string, size int64) []string {
			return []string{"nbdkit", "--foreground", "--exit-with-parent", "--unix", socket, "--filter=nozero", "memory", strconv.FormatInt(size, 10), "zeromode=none"}
		},
		"qemu-nbd": func(socket string, size int64) []string {
			image := socket + ".image"
			if err := os.WriteFile(image, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, size); err != nil {
				t.Fatal(err)
			}
			// The page cache tears a sector that is read while it is written: the filter keeps a read apart from all that overlaps it.
			return []string{"qemu-nbd", "--socket", socket, "--export-name", "vol", "--persistent", "--discard=unmap", "--cache=writeback",
				"--image-opts", "driver=copy-on-read,file.driver=raw,file.file.driver=file,file.file.filename=" + image}
		},
	} {
		blocktest.Run(t, name, func(t *testing.T, size int64) block.Device {
			socket := socketPath(t)
			spawn(t, nil, argv(socket, size)...)
			return open(t, socket)
		})
	}
}

// spawn starts a server and waits until it listens on the socket that its arguments, or env, name. kill kills it, once.
func spawn(t *testing.T, env []string, argv ...string) (kill func()) {
	t.Helper()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		t.Skipf("%s is not installed", argv[0])
	}
	socket := ""
	for _, a := range append(env, argv...) {
		if strings.HasSuffix(a, "/sock") {
			socket = a[strings.IndexByte(a, '/'):]
		}
	}
	cmd := exec.Command(path, argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	kill = func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	t.Cleanup(kill)
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
			return kill
		}
		select {
		case <-ended:
			t.Fatalf("%s: %v\n%s", argv[0], cmd.ProcessState, said.Bytes())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// serverEnv makes this test's program a server of ours over a file: socket, file and export, with tabs between.
const serverEnv = "TANDEM_TEST_NBD_SERVER"

func TestMain(m *testing.M) {
	if args := strings.Split(os.Getenv(serverEnv), "\t"); len(args) == 3 {
		err := serveFile(args[1], args[2], args[0])
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func serveFile(file, export, socket string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s, err := Listen(Options{Endpoints: []Endpoint{{Network: "unix", Address: socket}}, Expected: []string{export}})
	if err != nil {
		return err
	}
	i, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := s.Attach(context.Background(), export, &fileDevice{f: f, size: i.Size()}); err != nil {
		return err
	}
	select {} // until it is killed
}

// fileDevice is a file as a device. What was written is there when the process is killed.
type fileDevice struct {
	f    *os.File
	size int64
	mu   sync.RWMutex // not every file system keeps a read from seeing half of a block that is being written
}

func (d *fileDevice) Info() block.Info {
	return block.Info{Size: d.size, BlockSize: 4096, Caps: block.CapFlush | block.CapFUA | block.CapDiscard | block.CapWriteZeroes}
}
func (d *fileDevice) Close() error { return nil }
func (d *fileDevice) Submit(batch []*block.Request) {
	for _, r := range batch {
		go func() {
			var err error
			if r.Op == block.OpRead {
				d.mu.RLock()
				defer d.mu.RUnlock()
			} else {
				d.mu.Lock()
				defer d.mu.Unlock()
			}
			switch r.Op {
			case block.OpRead:
				_, err = d.f.ReadAt(r.Data, r.Off)
			case block.OpWrite:
				_, err = d.f.WriteAt(r.Data, r.Off)
			case block.OpWriteZeroes, block.OpDiscard:
				_, err = d.f.WriteAt(make([]byte, r.Len), r.Off)
			case block.OpFlush:
			}
			r.By.Complete(r, err)
		}()
	}
}

// fakeServer is a server that a test scripts: each connection, after its handshake, is given to the next of serve. What comes after the last
// is refused.
type fakeServer struct {
	t      *testing.T
	socket string
	l      net.Listener
}

func startFake(t *testing.T, serve ...func(c *fakeConn)) *fakeServer {
	t.Helper()
	s := &fakeServer{t: t, socket: socketPath(t)}
	var err error
	if s.l, err = net.Listen("unix", s.socket); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, f := range serve {
			c, err := s.l.Accept()
			if err != nil {
				return
			}
			fc := &fakeConn{t: t, Conn: c, size: 1 << 20}
			f(fc)
			_ = c.Close()
		}
		for {
			c, err := s.l.Accept()
			if err != nil {
				return
			}
			fc := &fakeConn{t: t, Conn: c}
			fc.refuse(repErrUnknown)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = s.l.Close()
		<-ended
	})
	return s
}

// fakeConn is a connection of a fakeServer. What goes wrong on it the device has to bear.
type fakeConn struct {
	t *testing.T
	net.Conn
	size uint64
}

func (c *fakeConn) get(n int) []byte {
	p := make([]byte, n)
	if _, err := io.ReadFull(c.Conn, p); err != nil {
		return nil
	}
	return p
}

func (c *fakeConn) put(b []byte) { _, _ = c.Write(b) }

// asked greets and reads the option.
func (c *fakeConn) asked() {
	b := binary.BigEndian.AppendUint64(nil, magicServer)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	c.put(binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes))
	if h := c.get(4 + optionHead); h != nil {
		c.get(int(binary.BigEndian.Uint32(h[4+12:])))
	}
}

func optReply(kind uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func (c *fakeConn) refuse(kind uint32) {
	c.asked()
	c.put(optReply(kind, []byte("it is gone")))
}

func sizeInfo(size uint64, flags uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, size)
	return optReply(repInfo, binary.BigEndian.AppendUint16(b, flags))
}

func blockInfo(least, most uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	b = binary.BigEndian.AppendUint32(b, least)
	b = binary.BigEndian.AppendUint32(b, 4096)
	return optReply(repInfo, binary.BigEndian.AppendUint32(b, most))
}

const fakeFlags = flagHasFlags | flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes

// show lets the client have the export.
func (c *fakeConn) show() {
	c.asked()
	c.put(append(append(sizeInfo(c.size, fakeFlags), blockInfo(4096, 1<<20)...), optReply(repAck, nil)...))
}

// request reads one, with its payload.
func (c *fakeConn) request() (h header) {
	if b := c.get(requestHead); b != nil {
		h, _ = parseHeader(b)
	}
	if h.cmd == cmdWrite {
		c.get(int(h.n))
	}
	return h
}

func (c *fakeConn) answer(e errno, cookie uint64, data []byte) {
	b := make([]byte, simpleHead)
	putSimple(b, e, cookie)
	c.put(append(b, data...))
}

// submit submits a request; its completion is told by the channel.
func submit(d block.Device, r block.Request) <-chan error {
	done := make(chan error, 1)
	r.By = block.CompleterFunc(func(_ *block.Request, err error) { done <- err })
	d.Submit([]*block.Request{&r})
	return done
}

// TestDeviceSendsAgain: what was not answered comes again, in the order in which it was submitted, and nothing else does.
func TestDeviceSendsAgain(t *testing.T) {
	const n = 9
	var first, second, third []uint64
	s := startFake(t, func(c *fakeConn) {
		c.show()
		var got []header
		for range n {
			h := c.request()
			got = append(got, h)
			first = append(first, h.off)
		}
		c.answer(0, got[4].cookie, nil)
		c.answer(0, got[2].cookie, make([]byte, 100)) // and then it dies, in the middle of the data
	}, func(c *fakeConn) { // one that dies at once
		c.show()
	}, func(c *fakeConn) {
		c.show()
		for range n - 1 {
			h := c.request()
			second = append(second, h.off)
			var data []byte
			if h.cmd == cmdRead {
				data = bytes.Repeat([]byte{7}, int(h.n))
			}
			c.answer(0, h.cookie, data)
		}
		h := c.request()
		third = append(third, h.off)
		c.answer(errnoNoSpace, h.cookie, nil)
		c.request() // until the device is closed
	})
	d := open(t, s.socket)
	var done []<-chan error
	var read []byte
	for i := range int64(n) {
		r := block.Request{Op: block.OpWrite, Off: i * 4096, Len: 4096, Data: make([]byte, 4096)}
		if i == 2 {
			r.Op, read = block.OpRead, r.Data
		}
		done = append(done, submit(d, r))
	}
	for i, c := range done {
		if err := <-c; err != nil {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if len(bytes.Trim(read, "\a")) > 0 {
		t.Error("the read did not get what the server said the second time")
	}
	if err := <-submit(d, block.Request{Op: block.OpWrite, Off: 0, Len: 4096, Data: make([]byte, 4096)}); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("%v, want the server's error", err)
	}
	_ = d.Close()
	_ = s.l.Close()
	var offs []uint64
	for i := range uint64(n) {
		if i != 4 {
			offs = append(offs, i*4096)
		}
	}
	if got, want := fmt.Sprint(second), fmt.Sprint(offs); got != want {
		t.Errorf("sent again: %s\nwant %s; at first it was %v", got, want, first)
	}
	if len(third) != 1 || third[0] != 0 {
		t.Errorf("then came %v", third)
	}
}

// TestDeviceEnds: what ends it, how requests fail then, and that Done tells.
func TestDeviceEnds(t *testing.T) {
	hang := func(c *fakeConn) {
		c.show()
		c.request()
	}
	for _, tc := range []struct {
		name     string
		patience time.Duration
		then     func(c *fakeConn)
		want     error
	}{
		{"the export is gone", 0, nil, ErrNoExport},
		{"the export is smaller", 0, func(c *fakeConn) { c.size = 1 << 19; c.show() }, ErrNoExport},
		{"the export is read-only", 0, func(c *fakeConn) {
			c.asked()
			c.put(append(sizeInfo(1<<20, fakeFlags|flagReadOnly), optReply(repAck, nil)...))
		}, ErrNoExport},
		{"the export cannot flush any more", 0, func(c *fakeConn) {
			c.asked()
			c.put(append(append(sizeInfo(1<<20, fakeFlags&^flagSendFlush), blockInfo(4096, 1<<20)...), optReply(repAck, nil)...))
		}, ErrNoExport},
		{"it is another server", 0, func(c *fakeConn) { c.put([]byte("SSH-2.0-OpenSSH_10.0 and more")) }, ErrNonsense},
		{"an answer to nothing", 0, func(c *fakeConn) { c.show(); c.request(); c.answer(0, 1<<40, nil); c.request() }, ErrNonsense},
		{"a reply of another kind", 0, func(c *fakeConn) { c.show(); c.request(); c.put(make([]byte, 64)); c.request() }, ErrNonsense},
		{"it stays away", 100 * time.Millisecond, func(c *fakeConn) { c.refuse(repErrShutdown) }, ErrNotBack},
	} {
		t.Run(tc.name, func(t *testing.T) {
			serve := []func(c *fakeConn){hang}
			if tc.then != nil {
				serve = append(serve, tc.then)
			}
			s := startFake(t, serve...)
			d, err := Dial(t.Context(), DialOptions{Socket: s.socket, Export: "vol", Patience: tc.patience, Logger: zaptest.NewLogger(t)})
			if err != nil {
				t.Fatal(err)
			}
			if errors.Is(tc.want, ErrNotBack) {
				_ = s.l.Close()
			}
			w := submit(d, block.Request{Op: block.OpWrite, Off: 0, Len: 4096, Data: make([]byte, 4096)})
			r := submit(d, block.Request{Op: block.OpFlush})
			for _, c := range []<-chan error{w, r} {
				if err := <-c; !errors.Is(err, tc.want) {
					t.Errorf("failed with %v, want %v", err, tc.want)
				}
			}
			<-d.Done()
			if err := d.Err(); !errors.Is(err, tc.want) {
				t.Errorf("Err is %v, want %v", err, tc.want)
			}
			if err := block.Flush(d); !errors.Is(err, tc.want) {
				t.Errorf("afterwards %v, want %v", err, tc.want)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDialRefused(t *testing.T) {
	for name, f := range map[string]func(c *fakeConn){
		"unknown":       func(c *fakeConn) { c.refuse(repErrUnknown) },
		"tls":           func(c *fakeConn) { c.refuse(repErrTLSReqd) },
		"shutting down": func(c *fakeConn) { c.refuse(repErrShutdown) },
		"no size":       func(c *fakeConn) { c.asked(); c.put(optReply(repAck, nil)) },
		"no blocks":     func(c *fakeConn) { c.asked(); c.put(append(sizeInfo(0, fakeFlags), optReply(repAck, nil)...)) },
		"odd size":      func(c *fakeConn) { c.asked(); c.put(append(sizeInfo(5000, fakeFlags), optReply(repAck, nil)...)) },
		"odd blocks": func(c *fakeConn) {
			c.asked()
			c.put(append(append(sizeInfo(1<<20, fakeFlags), blockInfo(3, 4096)...), optReply(repAck, nil)...))
		},
		"tiny requests": func(c *fakeConn) {
			c.asked()
			c.put(append(append(sizeInfo(1<<20, fakeFlags), blockInfo(1, 100)...), optReply(repAck, nil)...))
		},
		"short info": func(c *fakeConn) { c.asked(); c.put(optReply(repInfo, []byte{0, 0, 1})) },
		"much info":  func(c *fakeConn) { c.asked(); c.put(bytes.Repeat(sizeInfo(1<<20, fakeFlags), maxReplies+1)) },
		"huge reply": func(c *fakeConn) {
			c.asked()
			c.put(optReply(repInfo, nil)[:16])
			c.put([]byte{0xff, 0xff, 0xff, 0xff})
		},
		"other option":   func(c *fakeConn) { c.asked(); b := optReply(repAck, nil); b[11]++; c.put(b) },
		"old newstyle":   func(c *fakeConn) { c.put(make([]byte, 18)) },
		"hangs up":       func(*fakeConn) {},
		"hangs up later": func(c *fakeConn) { c.asked(); c.put(sizeInfo(1<<20, fakeFlags)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := startFake(t, f)
			if d, err := Dial(t.Context(), DialOptions{Socket: s.socket, Export: "vol"}); err == nil {
				_ = d.Close()
				t.Error("no error")
			} else if !strings.Contains(err.Error(), "vol") || !strings.Contains(err.Error(), s.socket) {
				t.Errorf("%v does not say what and where", err)
			}
		})
	}
	if _, err := Dial(t.Context(), DialOptions{Socket: filepath.Join(t.TempDir(), "none"), Export: "vol"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a server: %v", err)
	}
}

// TestDeviceKilled: the export ends while requests are in flight.
func TestDeviceKilled(t *testing.T) {
	s := startServer(t)
	held := blocktest.NewDelay(newMem(false))
	a := attach(t, s, "vol", held)
	d := open(t, s.Addr(0).String())
	held.Pause(blocktest.BeforeStart, nil)
	w := submit(d, block.Request{Op: block.OpWrite, Len: 4096, Data: make([]byte, 4096)})
	held.WaitHeld(1)
	a.Kill()
	if err := <-w; !errors.Is(err, ErrNoExport) {
		t.Errorf("a request in flight: %v", err)
	}
	<-d.Done()
	if err := block.Flush(d); !errors.Is(err, ErrNoExport) || !strings.Contains(err.Error(), "ends with its attachment") {
		t.Errorf("a later request: %v", err)
	}
	held.Resume()
}

// TestDeviceClosedUnderAHangingServer: neither one that does not answer nor one that is not there keeps Close.
func TestDeviceClosedUnderAHangingServer(t *testing.T) {
	hang := make(chan struct{})
	s := startFake(t, func(c *fakeConn) { c.show(); <-hang })
	d := open(t, s.socket)
	var done []<-chan error
	for range 64 { // more than the socket takes
		done = append(done, submit(d, block.Request{Op: block.OpWrite, Len: 1 << 20, Data: make([]byte, 1<<20)}))
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range done {
		if err := <-c; !errors.Is(err, block.ErrClosed) {
			t.Errorf("failed with %v", err)
		}
	}
	close(hang)
}

package device

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/datapath/frontend/device/devicepb"
	"github.com/tandem-storage/tandem/datapath/frontend/nbd"
)

// machine stands for a front end of this machine, whose consumers are the test.
type machine struct {
	mu      sync.Mutex
	devices map[string]*showing
	refuse  error
}

type showing struct {
	m    *machine
	id   string
	dev  block.Device
	done chan struct{}
	end  sync.Once
	err  error
	busy bool
	size int64 // of the last Resize
}

func (m *machine) Kind() frontend.Kind { return frontend.KindFuseLoop }
func (m *machine) Close() error        { return nil }
func (m *machine) Attach(_ context.Context, id string, d block.Device) (frontend.Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return nil, m.refuse
	}
	s := &showing{m: m, id: id, dev: d, done: make(chan struct{})}
	m.devices[id] = s
	return s, nil
}

// get returns what is shown as id, or nil.
func (m *machine) get() *showing {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.devices[id]
}

func (s *showing) finish(err error) {
	s.end.Do(func() {
		s.m.mu.Lock()
		delete(s.m.devices, s.id)
		s.m.mu.Unlock()
		s.err = err
		close(s.done)
	})
}

func (s *showing) Path() string { return "/dev/test-" + s.id }
func (s *showing) Resize(context.Context) error {
	s.size = s.dev.Info().Size
	return nil
}
func (s *showing) Detach(context.Context) error {
	if s.busy {
		return fmt.Errorf("it is mounted: %w", frontend.ErrBusy)
	}
	s.finish(nil)
	return nil
}
func (s *showing) Kill()                 { s.finish(errors.New("killed")) }
func (s *showing) Done() <-chan struct{} { return s.done }
func (s *showing) Err() error            { return s.err }

// keeper is the other process.
type keeper struct {
	*Keeper
	m      *machine
	socket string
	srv    *grpc.Server
}

func startKeeper(t *testing.T, dir string) *keeper {
	t.Helper()
	k := &keeper{m: &machine{devices: map[string]*showing{}}, socket: filepath.Join(dir, "keeper"), srv: grpc.NewServer()}
	k.Keeper = NewKeeper(KeeperOptions{Frontend: k.m, Logger: zaptest.NewLogger(t)})
	devicepb.RegisterDevicesServer(k.srv, k.Keeper)
	l, err := net.Listen("unix", k.socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- k.srv.Serve(l) }()
	t.Cleanup(func() {
		if err := k.Keeper.Close(context.Background()); err != nil {
			t.Error(err)
		}
		k.srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return k
}

// daemon is tandemd, as far as this goes.
type daemon struct {
	*Frontend
	nbd *nbd.Server
}

func startDaemon(t *testing.T, dir string, expected ...string) *daemon {
	t.Helper()
	socket := filepath.Join(dir, "nbd")
	s, err := nbd.Listen(nbd.Options{Endpoints: []nbd.Endpoint{{Network: "unix", Address: socket}}, Expected: expected, Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(Options{Server: s, NBDSocket: socket, Socket: filepath.Join(dir, "keeper"), Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{f, s}
	t.Cleanup(func() { d.end(t) })
	return d
}

// end is an end in order, and leaves what is shown.
func (d *daemon) end(t *testing.T) {
	t.Helper()
	_ = d.nbd.Close()
	_ = d.Frontend.Close() // twice is an error of the connection
}

// short is a directory whose name is short enough for sockets.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.TempDir(), "device")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

const (
	size = 1 << 20
	id   = "vol.1"
)

func newMem() *blocktest.Mem { return blocktest.NewMem(blocktest.MemOptions{Size: size, Seed: 1}) }

func attach(t *testing.T, f frontend.Frontend, d block.Device) frontend.Attachment {
	t.Helper()
	a, err := f.Attach(t.Context(), id, d)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// write writes a block of c at block n, and read wants it there.
func write(t *testing.T, d block.Device, n int64, c byte) {
	t.Helper()
	p := make([]byte, 4096)
	for i := range p {
		p[i] = c
	}
	if err := block.WriteAt(d, p, n*4096, 0); err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, d block.Device, n int64, c byte) {
	t.Helper()
	p := make([]byte, 4096)
	if err := block.ReadAt(d, p, n*4096); err != nil || p[0] != c || p[4095] != c {
		t.Errorf("block %d is of %d, %v; want %d", n, p[0], err, c)
	}
}

func TestOutlivesTheDaemon(t *testing.T) {
	dir, mem := short(t), newMem()
	k := startKeeper(t, dir)
	d := startDaemon(t, dir)
	a := attach(t, d, mem)
	if again := attach(t, d, mem); again != a || a.Path() != "/dev/test-vol.1" {
		t.Errorf("again it is %v, %s", again, again.Path())
	}
	shown := k.m.get()
	write(t, shown.dev, 1, 1)
	for round := range byte(5) {
		d.end(t)
		done := make(chan struct{})
		go func() { // waits for the next one
			defer close(done)
			write(t, shown.dev, 2, round)
		}()
		d = startDaemon(t, dir, id)
		next := attach(t, d, mem)
		<-done
		read(t, shown.dev, 1, 1)
		read(t, shown.dev, 2, round)
		if next.Path() != a.Path() || k.m.get() != shown {
			t.Fatalf("it is another device, %s", next.Path())
		}
		a = next
	}
	shown.busy = true
	if err := a.Detach(t.Context()); !errors.Is(err, frontend.ErrBusy) || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("detach in use: %v", err)
	}
	read(t, shown.dev, 1, 1) // nothing was changed
	shown.busy = false
	for range 2 {
		if err := a.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}
	<-a.Done()
	if err := a.Err(); err != nil {
		t.Errorf("after the detach Err is %v", err)
	}
	if resp, err := k.ListDevices(t.Context(), nil); err != nil || len(resp.GetDevices()) > 0 {
		t.Errorf("there are %v, %v", resp.GetDevices(), err)
	}
}

// TestNobodyGoesOn: what the next daemon does not serve is taken away.
func TestNobodyGoesOn(t *testing.T) {
	dir := short(t)
	k := startKeeper(t, dir)
	d := startDaemon(t, dir)
	attach(t, d, newMem())
	shown := k.m.get()
	d.end(t)
	startDaemon(t, dir)
	<-shown.done
	if err := block.Flush(shown.dev); !errors.Is(err, nbd.ErrNoExport) {
		t.Errorf("a request afterwards: %v", err)
	}
}

func TestKill(t *testing.T) {
	dir := short(t)
	k := startKeeper(t, dir)
	d := startDaemon(t, dir)
	held := blocktest.NewDelay(newMem())
	a := attach(t, d, held)
	shown := k.m.get()
	held.Pause(blocktest.BeforeStart, nil)
	defer held.Resume()
	failed := make(chan error, 1)
	go func() { failed <- block.Flush(shown.dev) }()
	held.WaitHeld(1)
	a.Kill()
	if err := <-failed; !errors.Is(err, nbd.ErrNoExport) {
		t.Errorf("a request in flight: %v", err)
	}
	<-a.Done()
	<-shown.done
	if err := a.Err(); !errors.Is(err, ErrKilled) {
		t.Errorf("Err is %v", err)
	}
	if err := a.Detach(t.Context()); err != nil {
		t.Errorf("detach afterwards: %v", err)
	}
}

// TestDeviceTakenAway: somebody takes the device from the keeper.
func TestDeviceTakenAway(t *testing.T) {
	dir, mem := short(t), newMem()
	k := startKeeper(t, dir)
	d := startDaemon(t, dir)
	a := attach(t, d, mem)
	k.m.get().finish(errors.New("losetup -d"))
	<-a.Done()
	if err := a.Err(); !errors.Is(err, ErrLost) {
		t.Errorf("Err is %v", err)
	}
	b := attach(t, d, mem) // another one of the same attachment: nothing was lost but the device
	write(t, k.m.get().dev, 1, 1)
	if err := b.Detach(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWithoutAKeeper(t *testing.T) {
	dir, mem := short(t), newMem()
	d := startDaemon(t, dir)
	if _, err := d.Attach(t.Context(), id, mem); !errors.Is(err, frontend.ErrUnavailable) || !strings.Contains(err.Error(), "tandemd device") {
		t.Errorf("attach: %v", err)
	}
	if _, err := nbd.Dial(t.Context(), nbd.DialOptions{Socket: filepath.Join(dir, "nbd"), Export: id}); !errors.Is(err, nbd.ErrNoExport) {
		t.Errorf("the export of an attach that failed: %v", err)
	}
	k := startKeeper(t, dir)
	k.m.refuse = errors.New("no loop devices")
	// The connection may still rest after its first attempt.
	_, err := d.Attach(t.Context(), id, mem)
	for err != nil && !strings.Contains(err.Error(), "no loop devices") && strings.Contains(err.Error(), "does not answer") && t.Context().Err() == nil {
		_, err = d.Attach(t.Context(), id, mem)
	}
	if !errors.Is(err, frontend.ErrUnavailable) || !strings.Contains(err.Error(), "no loop devices") {
		t.Errorf("refused: %v", err)
	}
	k.m.refuse = nil
	a := attach(t, d, mem)
	k.srv.Stop() // the process has died
	<-a.Done()
	if err := a.Err(); !errors.Is(err, ErrLost) {
		t.Errorf("Err is %v", err)
	}
}

// TestOtherServer: an id belongs to one server.
func TestOtherServer(t *testing.T) {
	dir := short(t)
	k := startKeeper(t, dir)
	d := startDaemon(t, dir)
	attach(t, d, newMem())
	_, err := k.AttachDevice(t.Context(), &devicepb.AttachDeviceRequest{Id: id, Socket: filepath.Join(dir, "other")})
	if err == nil || !strings.Contains(err.Error(), "/dev/test-vol.1") {
		t.Errorf("%v", err)
	}
	if _, err := k.AttachDevice(t.Context(), &devicepb.AttachDeviceRequest{Id: "vol.2", Socket: filepath.Join(dir, "nbd")}); err == nil {
		t.Error("an export that is not there was shown")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.WatchDevice(gone, &devicepb.WatchDeviceRequest{Id: id}); err == nil {
		t.Error("a watch that was given up ended well")
	}
	if resp, err := k.WatchDevice(t.Context(), &devicepb.WatchDeviceRequest{Id: "vol.2"}); err != nil || resp.GetReason() == "" {
		t.Errorf("a watch of nothing: %v, %v", resp, err)
	}
}

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

// TestResize: the device has the size of the export, also for the daemon after the one that said so.
func TestResize(t *testing.T) {
	dir := short(t)
	k := startKeeper(t, dir)
	d := startDaemon(t, dir)
	g := &growing{Mem: newMem()}
	g.size.Store(size / 4)
	a := attach(t, d, g)
	shown := k.m.get()
	g.size.Store(size / 2)
	for range 2 { // again is no harm
		if err := a.Resize(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := shown.size; n != size/2 {
		t.Errorf("the device has %d bytes", n)
	}
	write(t, shown.dev, size/2/4096-1, 1)
	d.end(t)
	d = startDaemon(t, dir, id)
	g.size.Store(size)
	a = attach(t, d, g)
	if err := a.Resize(t.Context()); err != nil || shown.size != size {
		t.Errorf("after a restart: %v, %d bytes", err, shown.size)
	}
	read(t, shown.dev, size/2/4096-1, 1)
	write(t, shown.dev, size/4096-1, 2)
	shown.finish(errors.New("losetup -d"))
	<-a.Done()
	if err := a.Resize(t.Context()); !errors.Is(err, frontend.ErrUnavailable) || !strings.Contains(err.Error(), "not shown") {
		t.Errorf("a device that is gone: %v", err)
	}
}

// TestResizeByOldKeeper: the device process may be older than tandemd, which it outlives.
func TestResizeByOldKeeper(t *testing.T) {
	dir := short(t)
	srv := grpc.NewServer()
	devicepb.RegisterDevicesServer(srv, old{})
	l, err := net.Listen("unix", filepath.Join(dir, "keeper"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	d := startDaemon(t, dir)
	a := attach(t, d, newMem())
	if err := a.Resize(t.Context()); !errors.Is(err, frontend.ErrUnavailable) || !strings.Contains(err.Error(), "older version") {
		t.Errorf("%v", err)
	}
	srv.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-a.Done()
}

// old is a keeper of a version that resized nothing.
type old struct {
	devicepb.UnimplementedDevicesServer
}

func (old) AttachDevice(context.Context, *devicepb.AttachDeviceRequest) (*devicepb.AttachDeviceResponse, error) {
	return &devicepb.AttachDeviceResponse{Path: "/dev/old"}, nil
}

func (old) WatchDevice(ctx context.Context, _ *devicepb.WatchDeviceRequest) (*devicepb.WatchDeviceResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

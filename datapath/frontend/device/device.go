// Package device shows block devices to the host as devices that outlive the process which serves them.
//
// Two processes share the work. The one that serves, tandemd, has the Frontend: it shows a device as an export of its NBD server
// and asks the other one, over a unix socket, to make a device of that. The other one has the Keeper: a client of the
// export that comes back when the connection is lost (nbd.Device), under whatever shows devices on this machine (fuseloop):
//
//	consumer -> /dev/loopN -> fuseloop -> nbd.Device    in the keeper's process
//	         -> unix socket -> nbd.Server -> device     in tandemd
//
// When tandemd is killed or replaced, requests wait in the keeper, and are sent again to the next process that serves an export of that
// name. Whether one may is for that process to decide: it says that there is no such export if not, and the device
// fails. So nothing is asked or remembered when a tandemd comes or goes.
//
// When the keeper's process ends its devices are gone, as those of fuseloop always are.
package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/datapath/frontend/device/devicepb"
	"github.com/tandem-storage/tandem/datapath/frontend/nbd"
)

// Why an attachment has ended. Test with errors.Is.
var (
	ErrKilled = errors.New("device: attachment was killed")
	// ErrLost means that the device is gone, or the process that kept it.
	ErrLost = errors.New("device: the device, or the process that kept it, is gone")
)

// askTimeout bounds a request to the keeper whose caller sets no bound.
const askTimeout = 30 * time.Second

// Options are the choices of New.
type Options struct {
	// Server shows the exports; NBDSocket is where the keeper reaches it. It is the caller's, and may show others besides.
	Server    *nbd.Server
	NBDSocket string
	// Socket is the keeper's.
	Socket string
	// Logger may be nil.
	Logger *zap.Logger
}

// Frontend implements frontend.Frontend.
type Frontend struct {
	o      Options
	lg     *zap.Logger
	cc     *grpc.ClientConn
	keeper devicepb.DevicesClient

	mu          sync.Mutex
	attachments map[string]*attachment
}

var _ frontend.Frontend = (*Frontend)(nil)

// New returns a front end. The keeper need not be there yet.
func New(o Options) (*Frontend, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if err := frontend.IOFlusher(); err != nil {
		o.Logger.Debug("memory reclaim may wait for the devices of this process", zap.Error(err))
	}
	b := backoff.DefaultConfig
	b.BaseDelay, b.MaxDelay = 50*time.Millisecond, time.Second
	cc, err := grpc.NewClient("unix://"+o.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	return &Frontend{o: o, lg: o.Logger, cc: cc, keeper: devicepb.NewDevicesClient(cc), attachments: make(map[string]*attachment)}, nil
}

// Kind implements frontend.Frontend.
func (f *Frontend) Kind() frontend.Kind { return frontend.KindDevice }

// Attach implements frontend.Frontend. What the keeper shows under id already, for the process before this one, goes on. Calls for one id take turns.
func (f *Frontend) Attach(ctx context.Context, id string, d block.Device) (frontend.Attachment, error) {
	export, err := f.o.Server.Attach(ctx, id, d)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	a := f.attachments[id]
	f.mu.Unlock()
	if a != nil && a.export == export && !isClosed(a.done) {
		return a, nil
	}
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := f.keeper.AttachDevice(ask, &devicepb.AttachDeviceRequest{Id: id, Socket: f.o.NBDSocket})
	if err != nil {
		// A keeper that cannot be reached may have a client here all the same, and nothing new comes of what was not asked.
		if export.Detach(ask) != nil && status.Code(err) != codes.Unavailable {
			export.Kill()
		}
		return nil, fmt.Errorf("attach %s: %w", id, f.unavailable(err))
	}
	watch, stop := context.WithCancel(context.Background())
	a = &attachment{f: f, id: id, path: resp.GetPath(), export: export, stop: stop, done: make(chan struct{})}
	f.mu.Lock()
	f.attachments[id] = a
	f.mu.Unlock()
	go a.watch(watch)
	f.lg.Info("device attached", zap.String("attachment", id), zap.String("path", a.path))
	return a, nil
}

// unavailable is what the keeper's error means.
func (f *Frontend) unavailable(err error) error {
	if status.Code(err) == codes.Unavailable {
		return fmt.Errorf("%w: the device process does not answer at %s: start \"tandemd device\" on this node: %w", frontend.ErrUnavailable, f.o.Socket, err)
	}
	return fmt.Errorf("%w: the device process: %s", frontend.ErrUnavailable, status.Convert(err).Message())
}

// Close forgets the attachments and leaves the devices to the next process: they wait for it as soon as the server has ended.
func (f *Frontend) Close() error {
	f.mu.Lock()
	for _, a := range f.attachments {
		a.stop()
	}
	f.mu.Unlock()
	if err := f.cc.Close(); err != nil {
		return fmt.Errorf("device: %w", err)
	}
	return nil
}

// attachment implements frontend.Attachment.
type attachment struct {
	f      *Frontend
	id     string
	path   string
	export frontend.Attachment
	stop   context.CancelFunc // of watch

	killed  atomic.Bool
	leaving atomic.Bool // Detach is under way
	done    chan struct{}
	err     error // set before done is closed
}

// watch waits for the end of the device.
func (a *attachment) watch(ctx context.Context) {
	resp, err := a.f.keeper.WatchDevice(ctx, &devicepb.WatchDeviceRequest{Id: a.id})
	if ctx.Err() != nil {
		return // it is left to the next process
	}
	switch {
	case a.killed.Load():
		a.err = ErrKilled
	case err == nil && a.leaving.Load(): // whatever reason was found first
	case err != nil:
		a.err = fmt.Errorf("%w: %w", ErrLost, err)
	case resp.GetReason() != "":
		a.err = fmt.Errorf("%w: %s", ErrLost, resp.GetReason())
	}
	a.export.Kill() // nobody else is to have it
	a.f.mu.Lock()
	if a.f.attachments[a.id] == a {
		delete(a.f.attachments, a.id)
	}
	a.f.mu.Unlock()
	if a.err != nil {
		a.f.lg.Warn("device is gone", zap.String("attachment", a.id), zap.String("path", a.path), zap.Error(a.err))
	}
	close(a.done)
}

// Path implements frontend.Attachment.
func (a *attachment) Path() string { return a.path }

// Detach implements frontend.Attachment.
func (a *attachment) Detach(ctx context.Context) error {
	if isClosed(a.done) {
		return nil
	}
	a.leaving.Store(true)
	_, err := a.f.keeper.DetachDevice(ctx, &devicepb.DetachDeviceRequest{Id: a.id})
	if err != nil {
		a.leaving.Store(false)
	}
	switch status.Code(err) {
	case codes.OK:
	case codes.FailedPrecondition:
		return fmt.Errorf("detach %s: %s: %w", a.id, status.Convert(err).Message(), frontend.ErrBusy)
	default:
		return fmt.Errorf("detach %s: %w", a.id, a.f.unavailable(err))
	}
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("detach %s: %w", a.id, ctx.Err())
	}
}

// Resize implements frontend.Attachment. The keeper learns the size from the export, without a pause for the consumer.
func (a *attachment) Resize(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := a.f.keeper.ResizeDevice(ctx, &devicepb.ResizeDeviceRequest{Id: a.id})
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.Unimplemented: // by a process that is older than this one
		return fmt.Errorf("%w: the volume is larger, %s is not: the device process of this node is of an older version, restart it when the node is drained; the new size is there after a detach and an attach",
			frontend.ErrUnavailable, a.path)
	default:
		return fmt.Errorf("resize %s: the volume is larger, %s is not, resize it again: %w", a.id, a.path, a.f.unavailable(err))
	}
}

// Kill implements frontend.Attachment. The export is unknown when it returns; the keeper finds that out and fails the device.
func (a *attachment) Kill() {
	a.killed.Store(true)
	a.export.Kill()
}

// Done implements frontend.Attachment.
func (a *attachment) Done() <-chan struct{} { return a.done }

// Err implements frontend.Attachment.
func (a *attachment) Err() error {
	if !isClosed(a.done) {
		return nil
	}
	return a.err
}

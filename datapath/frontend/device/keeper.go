package device

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/datapath/frontend/device/devicepb"
	"github.com/tandem-storage/tandem/datapath/frontend/nbd"
)

// KeeperOptions are the choices of NewKeeper.
type KeeperOptions struct {
	// Frontend shows the devices. It is the caller's.
	Frontend frontend.Frontend
	// Patience is how long requests wait for a tandemd that is gone before the device fails for good. 0 means for ever.
	Patience time.Duration
	// Logger may be nil.
	Logger *zap.Logger
}

// Keeper shows exports of NBD servers as devices of this machine: the service that a Frontend asks. What it shows is all that it
// knows; nothing is kept on disk, and a device goes on whoever asks and whatever becomes of him, until its export is gone for good.
type Keeper struct {
	devicepb.UnimplementedDevicesServer
	o  KeeperOptions
	lg *zap.Logger

	mu     sync.Mutex
	closed bool
	shown  map[string]*kept
	busy   map[string]chan struct{} // ids of which an attach or detach is under way; closed at its end
}

// kept is one device.
type kept struct {
	socket string
	export *nbd.Device
	att    frontend.Attachment
	done   chan struct{} // closed when all of it is gone
	reason error         // why; set before
}

// NewKeeper returns a Keeper that shows nothing yet.
func NewKeeper(o KeeperOptions) *Keeper {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return &Keeper{o: o, lg: o.Logger, shown: make(map[string]*kept), busy: make(map[string]chan struct{})}
}

// lock waits until nothing else is under way with id.
func (k *Keeper) lock(ctx context.Context, id string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		wait := k.busy[id]
		if wait == nil {
			done := make(chan struct{})
			k.busy[id] = done
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.busy, id)
				k.mu.Unlock()
				close(done)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

// get returns what is shown under id, or nil.
func (k *Keeper) get(id string) (*kept, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, status.Error(codes.Unavailable, "the device process is ending")
	}
	return k.shown[id], nil
}

// AttachDevice implements devicepb.DevicesServer.
func (k *Keeper) AttachDevice(ctx context.Context, r *devicepb.AttachDeviceRequest) (*devicepb.AttachDeviceResponse, error) {
	unlock, err := k.lock(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, err := k.get(r.GetId())
	if err != nil {
		return nil, err
	}
	if d != nil && (isClosed(d.export.Done()) || isClosed(d.att.Done())) { // on its way out
		select {
		case <-d.done:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		d = nil
	}
	if d != nil {
		if d.socket != r.GetSocket() {
			return nil, status.Errorf(codes.FailedPrecondition, "%s is shown as %s for another server, %s", r.GetId(), d.att.Path(), d.socket)
		}
		return &devicepb.AttachDeviceResponse{Path: d.att.Path()}, nil
	}
	export, err := nbd.Dial(ctx, nbd.DialOptions{Socket: r.GetSocket(), Export: r.GetId(), Patience: k.o.Patience, Logger: k.lg})
	if err != nil {
		return nil, refusal(err)
	}
	att, err := k.o.Frontend.Attach(ctx, r.GetId(), export)
	if err != nil {
		return nil, refusal(errors.Join(err, export.Close()))
	}
	d = &kept{socket: r.GetSocket(), export: export, att: att, done: make(chan struct{})}
	k.mu.Lock()
	k.shown[r.GetId()] = d
	k.mu.Unlock()
	go k.guard(r.GetId(), d)
	return &devicepb.AttachDeviceResponse{Path: att.Path()}, nil
}

// refusal is what the asker is told of an error.
func refusal(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	default:
		return status.Error(codes.FailedPrecondition, err.Error())
	}
}

// guard ends the device with its export, and the other way round.
func (k *Keeper) guard(id string, d *kept) {
	select {
	case <-d.export.Done():
		d.reason = d.export.Err()
		d.att.Kill()
	case <-d.att.Done():
		d.reason = d.att.Err()
	}
	<-d.att.Done()
	if err := d.export.Close(); err != nil {
		k.lg.Warn("connection to the nbd server is left", zap.String("attachment", id), zap.Error(err))
	}
	k.mu.Lock()
	delete(k.shown, id)
	k.mu.Unlock()
	close(d.done)
}

// DetachDevice implements devicepb.DevicesServer.
func (k *Keeper) DetachDevice(ctx context.Context, r *devicepb.DetachDeviceRequest) (*devicepb.DetachDeviceResponse, error) {
	unlock, err := k.lock(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, err := k.get(r.GetId())
	if err != nil {
		return nil, err
	}
	if d != nil {
		if err := d.att.Detach(ctx); err != nil {
			return nil, refusal(err)
		}
		<-d.done
	}
	return &devicepb.DetachDeviceResponse{}, nil
}

// ResizeDevice implements devicepb.DevicesServer.
func (k *Keeper) ResizeDevice(ctx context.Context, r *devicepb.ResizeDeviceRequest) (*devicepb.ResizeDeviceResponse, error) {
	unlock, err := k.lock(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, err := k.get(r.GetId())
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, status.Errorf(codes.NotFound, "%s is not shown", r.GetId())
	}
	if err := d.export.Refresh(ctx); err != nil {
		return nil, refusal(err)
	}
	if err := d.att.Resize(ctx); err != nil {
		return nil, refusal(err)
	}
	return &devicepb.ResizeDeviceResponse{SizeBytes: d.export.Info().Size}, nil
}

// WatchDevice implements devicepb.DevicesServer.
func (k *Keeper) WatchDevice(ctx context.Context, r *devicepb.WatchDeviceRequest) (*devicepb.WatchDeviceResponse, error) {
	k.mu.Lock()
	d := k.shown[r.GetId()]
	k.mu.Unlock()
	if d == nil {
		return &devicepb.WatchDeviceResponse{Reason: "it is not shown"}, nil
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	resp := &devicepb.WatchDeviceResponse{}
	if d.reason != nil {
		resp.Reason = d.reason.Error()
	}
	return resp, nil
}

// ListDevices implements devicepb.DevicesServer.
func (k *Keeper) ListDevices(context.Context, *devicepb.ListDevicesRequest) (*devicepb.ListDevicesResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	resp := &devicepb.ListDevicesResponse{}
	for id, d := range k.shown {
		resp.Devices = append(resp.Devices, &devicepb.Device{Id: id, Path: d.att.Path(), Socket: d.socket})
	}
	slices.SortFunc(resp.Devices, func(a, b *devicepb.Device) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return resp, nil
}

// Close takes every device away; consumers that have one open get errors. It returns what they were.
func (k *Keeper) Close(ctx context.Context) error {
	k.mu.Lock()
	k.closed = true
	all := make(map[string]*kept)
	for id, d := range k.shown {
		all[id] = d
	}
	k.mu.Unlock()
	var errs []error
	for id, d := range all {
		if err := d.att.Detach(ctx); err != nil {
			errs = append(errs, fmt.Errorf("device: %s is taken away from its consumer: %w", id, err))
			d.att.Kill()
		}
		<-d.done
	}
	return errors.Join(errs...)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

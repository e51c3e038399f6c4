package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/datapath/frontend/device"
	"github.com/tandem-storage/tandem/datapath/frontend/device/devicepb"
	"github.com/tandem-storage/tandem/datapath/frontend/fuseloop"
)

// RunDevices is "tandemd device": it keeps devices of this machine over restarts of tandemd. It returns when ctx ends,
// after every device was taken away, also from consumers.
func RunDevices(ctx context.Context, c *config.Config, version string, lg *zap.Logger) (err error) {
	d := c.Frontends.Device
	lg.Info("device process starting", zap.String("version", version), zap.String("socket", d.Socket), zap.String("dir", d.Dir), zap.Duration("patience", d.Patience))
	defer func() { lg.Info("device process stopped", zap.Error(err)) }()
	// The directory first: it belongs to one process, which alone may take the socket.
	fuse, err := fuseloop.New(fuseloop.Options{Dir: d.Dir, MaxRequests: c.Replication.MaxInflight, Helper: fuseloopHelper, Logger: lg})
	if err != nil {
		return err
	}
	l, err := listenUnix(d.Socket)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for tandemd (frontends.device.socket): %w", err), fuse.Close())
	}
	keeper := device.NewKeeper(device.KeeperOptions{Frontend: fuse, Patience: d.Patience, Logger: lg})
	s := grpc.NewServer()
	devicepb.RegisterDevicesServer(s, keeper)
	served := make(chan error, 1)
	go func() { served <- serveDevices(s, l) }()
	lg.Info("device process ready", zap.String("socket", d.Socket))
	select {
	case <-ctx.Done():
	case err = <-served:
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if kerr := keeper.Close(stop); kerr != nil {
		lg.Error("devices were taken away from their consumers, who get errors", zap.Error(kerr))
	}
	s.Stop()
	return errors.Join(err, inTime(stopTimeout, fuse.Close))
}

func serveDevices(s *grpc.Server, l net.Listener) error {
	if err := s.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

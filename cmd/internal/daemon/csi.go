package daemon

import (
	"fmt"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/cmd/internal/kubelet"
	"github.com/tandem-storage/tandem/csi"
	"github.com/tandem-storage/tandem/csi/mount"
)

// startCSI serves orchestrators, if the node is to. The driver asks this daemon as an operator does, over its socket.
func (d *daemon) startCSI(g *errgroup.Group, stops *stopper) error {
	if d.c.CSI.Socket == "" {
		return nil
	}
	cc, err := grpc.NewClient("unix://"+d.c.API.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("reach api.socket for CSI: %w", err)
	}
	stops.push(cc.Close)
	l, err := listenUnix(d.c.CSI.Socket)
	if err != nil {
		return fmt.Errorf("listen for CSI (csi.socket): %w", err)
	}
	kind := config.FrontendFuseLoop // unless what outlives this process is to be had
	if d.c.Frontends.Default == config.FrontendDevice {
		kind = config.FrontendDevice
	}
	s := csi.New(csi.Options{
		Node: d.c.NodeID, Domain: d.c.Domain, Version: d.version, Backend: csi.NewClient(cc), Mounter: mount.System{Helper: mountHelper}, Frontend: string(kind), Logger: d.lg,
	}).Server()
	serveOn(g, s, l)
	stops.push(func() error {
		s.Stop()
		return nil
	})
	return d.register(g, stops)
}

// register tells the kubelet of the driver, which is served already. It ends before the driver does, with its socket: the kubelet asks
// nothing of a driver that is not registered.
func (d *daemon) register(g *errgroup.Group, stops *stopper) error {
	if d.c.CSI.RegistrationSocket == "" {
		return nil
	}
	l, err := listenUnix(d.c.CSI.RegistrationSocket)
	if err != nil {
		return fmt.Errorf("listen for the kubelet (csi.registrationSocket): %w", err)
	}
	s := kubelet.NewServer(kubelet.Options{Driver: csi.Name, Socket: d.c.CSI.Socket, Logger: d.lg})
	serveOn(g, s, l)
	stops.push(func() error {
		s.Stop()
		return nil
	})
	return nil
}

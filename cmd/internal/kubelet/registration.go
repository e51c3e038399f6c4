// Package kubelet tells the kubelet of this machine that the daemon has a CSI driver, without a program in between: it serves the kubelet's
// registration of plugins, version 1.
package kubelet

import (
	"context"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// version is that of the registration, not of CSI: the kubelet takes every CSI 1.x under it.
const version = "1.0.0"

// Options of a Server. All are required.
type Options struct {
	Driver string // as it is called in Kubernetes
	Socket string // on which it is served, as the kubelet sees it
	Logger *zap.Logger
}

// server answers the kubelet, which asks whoever makes a socket in its directory for registrations.
type server struct {
	registration.UnimplementedRegistrationServer
	o Options
}

// NewServer returns a gRPC server with the registration. The driver has to be served before it is: the kubelet calls it before it says
// whether it is registered. The kubelet unregisters the driver when the registration's socket is removed.
func NewServer(o Options) *grpc.Server {
	s := grpc.NewServer()
	registration.RegisterRegistrationServer(s, &server{o: o})
	return s
}

// GetInfo implements Registration.
func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: s.o.Driver, Endpoint: s.o.Socket, SupportedVersions: []string{version},
	}, nil
}

// NotifyRegistrationStatus implements Registration. A kubelet that could not register the driver tries again by itself, so it is enough to
// say so.
func (s *server) NotifyRegistrationStatus(_ context.Context, r *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if r.GetPluginRegistered() {
		s.o.Logger.Info("registered with the kubelet", zap.String("driver", s.o.Driver))
	} else {
		s.o.Logger.Error("the kubelet did not register the driver, so no pod on this node gets a volume of it; it tries again. Check that it reaches csi.socket under the same path",
			zap.String("driver", s.o.Driver), zap.String("csi-socket", s.o.Socket), zap.String("reason", r.GetError()))
	}
	return &registration.RegistrationStatusResponse{}, nil
}

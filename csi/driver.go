// Package csi is the CSI driver csi.tandem.storage: Identity, Controller, GroupController, Node and SnapshotMetadata over the API of the daemon that serves it.
//
// It keeps no state: what it is asked for is decided by the volumes' records and by what is mounted. So every call may be repeated on any
// node (Controller) or after any crash (Node). How it fits together is in docs/design/0026-csi.md.
package csi

import (
	"context"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tandem-storage/tandem/csi/mount"
	"github.com/tandem-storage/tandem/csi/opgate"
)

// Name is the driver's: the provisioner of a StorageClass.
const Name = "csi.tandem.storage"

// Topology keys of nodes and volumes.
const (
	TopologyDomain = "topology.tandem.storage/domain"
	TopologyNode   = "topology.tandem.storage/node"
)

// maxVolumes is how many volumes a node is asked to take. No harder bound is known: each costs a loop device and a FUSE mount. A pod had so many: docs/reference/external-storage.md.
const maxVolumes = 256

// actor is who asks, in the audit trail.
const actor = "csi"

// Mounter is what Node needs of the machine; mount.System has it.
type Mounter interface {
	Format(ctx context.Context, device, fs string, options []string) error
	CheckZero(device string) error
	Grow(ctx context.Context, device, target, fs string) error
	Mount(ctx context.Context, device, target, fs string, options []string) error
	Bind(source, target string, readOnly bool) error
	Unmount(target string, lazy bool) error
	At(path string) (*mount.Point, error)
	List() ([]mount.Point, error)
	Usage(path string) (mount.Usage, error)
	SetGroup(dir string, gid int) error
}

// Options of a Driver. All but Logger are required.
type Options struct {
	Node, Domain string // where it runs
	Version      string
	Backend      Backend
	Mounter      Mounter
	Frontend     string // by which volumes are attached: one that shows them to this machine's kernel; "" = fuseloop
	Logger       *zap.Logger
}

// Driver serves CSI on one node.
type Driver struct {
	spec.UnimplementedIdentityServer
	spec.UnimplementedControllerServer
	spec.UnimplementedGroupControllerServer
	spec.UnimplementedNodeServer
	spec.UnimplementedSnapshotMetadataServer
	o    Options
	gate opgate.Gate
}

// New returns a driver; Server has it served.
func New(o Options) *Driver {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Frontend == "" {
		o.Frontend = "fuseloop"
	}
	return &Driver{o: o}
}

// Server returns a gRPC server with the driver's services.
func (d *Driver) Server() *grpc.Server {
	s := grpc.NewServer(grpc.ChainUnaryInterceptor(d.intercept), grpc.ChainStreamInterceptor(d.interceptStream))
	spec.RegisterIdentityServer(s, d)
	spec.RegisterControllerServer(s, d)
	spec.RegisterGroupControllerServer(s, d)
	spec.RegisterNodeServer(s, d)
	spec.RegisterSnapshotMetadataServer(s, d)
	return s
}

// intercept refuses what breaks the limits of the specification, and logs how calls ended. What was asked is not logged: it may hold secrets.
func (d *Driver) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	began := time.Now()
	var resp any
	err := error(nil)
	if m, ok := req.(proto.Message); ok {
		err = checkLimits(m)
	}
	if err == nil {
		resp, err = next(ctx, req)
	}
	if err = d.ended(info.FullMethod, began, err); err != nil {
		return nil, err
	}
	return resp, nil
}

// interceptStream is intercept for calls that are answered with more than one message.
func (d *Driver) interceptStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	began := time.Now()
	return d.ended(info.FullMethod, began, next(srv, limitedStream{stream}))
}

// limitedStream refuses requests as intercept does.
type limitedStream struct{ grpc.ServerStream }

func (s limitedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if p, ok := m.(proto.Message); ok {
		return checkLimits(p)
	}
	return nil
}

// ended logs how a call ended, and returns err as CSI wants it.
func (d *Driver) ended(method string, began time.Time, err error) error {
	took := zap.Duration("took", time.Since(began))
	if err != nil {
		err = plain(err)
		d.o.Logger.Info("csi call refused or failed", zap.String("method", method), took, zap.Error(err))
		return err
	}
	d.o.Logger.Debug("csi call", zap.String("method", method), took)
	return nil
}

// plain is err as CSI wants it: code and message, no details.
func plain(err error) error {
	s := status.Convert(err)
	code := s.Code()
	if code == codes.Unknown { // an error of this machine: a mount, a file
		code = codes.Internal
	}
	return status.Error(code, s.Message())
}

// enter lets one operation on a volume through, given by its handle. Errors: those of ParseVolumeID, ABORTED.
func (d *Driver) enter(handle, op string) (id VolumeID, leave func(), err error) {
	if id, err = ParseVolumeID(handle); err != nil {
		return "", nil, err
	}
	leave, err = d.pass(id.String(), op)
	return id, leave, err
}

// pass lets one operation on key through. ABORTED: another one is on its way.
func (d *Driver) pass(key, op string) (leave func(), err error) {
	leave, err = d.gate.Enter(key, op)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	return leave, nil
}

func invalid(format string, a ...any) error {
	return status.Errorf(codes.InvalidArgument, format, a...)
}

func refused(format string, a ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, a...)
}

package csi

import (
	"context"
	"net"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// dialed is a driver behind its own gRPC server, with all that it logs.
func dialed(t testing.TB) (*grpc.ClientConn, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.DebugLevel)
	c := newCluster()
	s := New(Options{Node: "node-a", Domain: "a", Backend: c, Mounter: c.machine, Logger: zap.New(core)}).Server()
	l := bufconn.Listen(1 << 20)
	go func() { _ = s.Serve(l) }() // ends with Stop
	cc, err := grpc.NewClient("passthrough:csi", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		s.Stop()
	})
	return cc, logs
}

// methods are all that the driver's services have, whether it implements them or not.
func methods(t testing.TB) []protoreflect.MethodDescriptor {
	var ms []protoreflect.MethodDescriptor
	for _, name := range []string{"Identity", "Controller", "Node"} {
		s := spec.File_csi_proto.Services().ByName(protoreflect.Name(name))
		for i := range s.Methods().Len() {
			ms = append(ms, s.Methods().Get(i))
		}
	}
	if len(ms) < 25 {
		t.Fatalf("found only %d methods", len(ms))
	}
	return ms
}

func invoke(ctx context.Context, t testing.TB, cc *grpc.ClientConn, m protoreflect.MethodDescriptor, req proto.Message) error {
	out, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		t.Fatal(err)
	}
	return cc.Invoke(ctx, "/"+string(m.Parent().FullName())+"/"+string(m.Name()), req, out.New().Interface())
}

func newRequest(t testing.TB, m protoreflect.MethodDescriptor) protoreflect.Message {
	in, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		t.Fatal(err)
	}
	return in.New()
}

const secret = "s3cr3t-that-nobody-may-see"

// Every string of every request, too long or with a control character, is refused as INVALID_ARGUMENT by the name of its field; no secret
// is in an answer or a log.
func TestHostileFields(t *testing.T) {
	cc, logs := dialed(t)
	tried := 0
	for _, m := range methods(t) {
		fields := m.Input().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			for _, bad := range []string{strings.Repeat("x", 5000), "a\x00b", "a\nb"} {
				req := newRequest(t, m)
				switch {
				case f.IsMap() && f.MapValue().Kind() == protoreflect.StringKind:
					req.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString(secret+bad))
				case f.Kind() == protoreflect.StringKind && !f.IsList():
					req.Set(f, protoreflect.ValueOfString(bad))
				default:
					continue
				}
				tried++
				err := invoke(t.Context(), t, cc, m, req.Interface())
				if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), string(f.Name())) {
					t.Errorf("%s with a bad %s: %v", m.Name(), f.Name(), err)
				}
				if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "xxxxx")) {
					t.Errorf("%s tells the value of %s", m.Name(), f.Name())
				}
			}
		}
	}
	if tried < 100 {
		t.Fatalf("tried only %d", tried)
	}
	noSecret(t, logs)
}

func noSecret(t *testing.T, logs *observer.ObservedLogs) {
	t.Helper()
	if logs.Len() == 0 {
		t.Fatal("nothing was logged: the test looks in the wrong place")
	}
	for _, e := range logs.All() {
		for _, f := range e.Context {
			if err, ok := f.Interface.(error); strings.Contains(f.String, secret) || ok && strings.Contains(err.Error(), secret) {
				t.Errorf("the log has a secret in %q", e.Message)
			}
		}
	}
}

// Requests that are well formed, with secrets, whether they succeed or not.
func TestSecretsNotLogged(t *testing.T) {
	cc, logs := dialed(t)
	for _, m := range methods(t) {
		req := newRequest(t, m)
		fields := m.Input().Fields()
		for i := range fields.Len() {
			switch f := fields.Get(i); {
			case f.Name() == "secrets":
				req.Mutable(f).Map().Set(protoreflect.ValueOfString(secret).MapKey(), protoreflect.ValueOfString(secret))
			case f.Name() == "volume_capability":
				req.Set(f, protoreflect.ValueOfMessage(mountedWith(secret+"=password").ProtoReflect()))
			case f.Kind() == protoreflect.StringKind && !f.IsList() && !f.IsMap():
				req.Set(f, protoreflect.ValueOfString("/a/b"))
			}
		}
		if err := invoke(t.Context(), t, cc, m, req.Interface()); err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s answers with a secret", m.Name())
		}
	}
	noSecret(t, logs)
}

func mountedWith(flag string) *spec.VolumeCapability {
	vc := mounted("xfs", writer)
	vc.GetMount().MountFlags = []string{"x-" + flag}
	return vc
}

// The second call on a volume is told so, and the first goes on.
func TestOneAtATime(t *testing.T) {
	h := newHost(t)
	h.c.hold, h.c.entered = make(chan struct{}), make(chan struct{}, 1)
	r := &spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*spec.VolumeCapability{raw()}}
	first := make(chan error, 1)
	go func() {
		_, err := h.CreateVolume(context.Background(), r)
		first <- err
	}()
	<-h.c.entered
	_, err := h.CreateVolume(t.Context(), r)
	wantCode(t, err, codes.Aborted)
	close(h.c.hold)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	h.c.hold = nil
	if _, err := h.CreateVolume(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// What comes over the socket never takes the process down, and never gets through without a code of the specification.
func FuzzCalls(f *testing.F) {
	ms := methods(f)
	for i := range ms {
		f.Add(i, []byte{})
		f.Add(i, []byte("\x0a\x24aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"))
	}
	cc, _ := dialed(f)
	f.Fuzz(func(t *testing.T, i int, data []byte) {
		m := ms[uint(i)%uint(len(ms))]
		req := newRequest(t, m).Interface()
		if strings.HasPrefix(string(m.Name()), "NodeP") || strings.HasPrefix(string(m.Name()), "NodeS") || strings.HasPrefix(string(m.Name()), "NodeU") {
			return // they make and remove files: FuzzPaths
		}
		if proto.Unmarshal(data, req) != nil {
			return
		}
		if c := status.Code(invoke(t.Context(), t, cc, m, req)); c == codes.Unknown || c == codes.Internal {
			t.Fatalf("%s: %v", m.Name(), c)
		}
	})
}

// No string is taken for a path, a handle, a parameter or options that could be more than one.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{"", "/", "/a/b", "/a/../b", "//a/b", "/a/b/", "00000001-0000-4000-8000-000000000007", "-f", "a=b,c", "../x", "bind"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkPath("p", s) == nil && (strings.Contains(s, "/../") || strings.HasSuffix(s, "/..") || strings.Contains(s, "//") || s[0] != '/') {
			t.Errorf("path %q", s)
		}
		if _, err := ParseVolumeID(s); err == nil && (len(s) != 36 || strings.ContainsAny(s, "/. ")) {
			t.Errorf("handle %q", s)
		}
		if args, ok := mkfsOptions(s); ok && strings.ContainsAny(strings.Join(args, ""), "/'\"$;&|\\") {
			t.Errorf("mkfs options %q", s)
		}
		if u, err := parseUse(mountedFlag(s)); err == nil && strings.ContainsAny(strings.Join(u.options, ""), "/ ,") {
			t.Errorf("mount options %q", s)
		}
		if n := volumeName(s); !nameSyntax.MatchString(n) || len(n) > 128 {
			t.Errorf("%q is named %q", s, n)
		}
	})
}

func mountedFlag(s string) *spec.VolumeCapability {
	vc := mounted("xfs", writer)
	vc.GetMount().MountFlags = []string{s}
	return vc
}

package transport_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "github.com/tandem-storage/tandem/replication/replicationpb"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/transport/pki"
)

func TestParseIdentity(t *testing.T) {
	good := transport.Identity{Cluster: "metro-1", Domain: "dr-site", Node: "n1.example"}
	for uri, want := range map[string]transport.Identity{
		"tandem://metro-1/dr-site/n1.example":          good,
		"tandem://metro-1/dr-site":                     {},
		"tandem://metro-1/dr-site/":                    {},
		"tandem://metro-1//n1":                         {},
		"tandem:///dr-site/n1":                         {},
		"tandem://metro-1/dr-site/n1/more":             {},
		"tandem://metro-1/dr-site/n1?x=1":              {},
		"tandem://metro-1/dr-site/n1#x":                {},
		"tandem://user@metro-1/dr-site/n1":             {},
		"tandem://metro-1:80/dr-site/n1":               {},
		"tandem://metro-1/dr-site/..":                  {},
		"tandem://metro-1/dr%2Dsite/n1":                {},
		"tandem://METRO/dr-site/n1":                    {},
		"spiffe://metro-1/dr-site/n1":                  {},
		"tandem:metro-1/dr-site/n1":                    {},
		"tandem://m/d/" + strings.Repeat("n", 64):      {},
		"tandem://metro-1/dr-site/n\u00e4ch":           {},
		"tandem://metro-1/dr-site/n1%00":               {},
		"tandem://metro-1/" + "dr-site" + "/n1%2Fmore": {},
	} {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		got, err := transport.ParseIdentity(u)
		if got != want || (err == nil) != (want == good) || (err != nil && !errors.Is(err, transport.ErrIdentity)) {
			t.Errorf("%s: %+v, %v", uri, got, err)
		}
	}
	if good.String() != "tandem://metro-1/dr-site/n1.example" {
		t.Error(good)
	}
}

// TestRefused: whoever is not a node of the cluster, or not the node that was
// dialled, gets nowhere and is told why.
func TestRefused(t *testing.T) {
	otherCA, err := pki.NewCA(cluster, time.Hour) // of the same name
	if err != nil {
		t.Fatal(err)
	}
	otherCluster, err := pki.NewCA("other", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	issue := func(ca *pki.CA, id transport.Identity, valid time.Duration) tls.Certificate {
		t.Helper()
		c, err := ca.Issue(id, valid)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	node := transport.Identity{Cluster: cluster, Domain: "dom", Node: "client"}
	// The server trusts the authority of another cluster, too: not even then.
	crt := filepath.Join(t.TempDir(), "other.crt")
	if err := otherCluster.Save(crt, crt+".key"); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(crt)
	if err != nil {
		t.Fatal(err)
	}
	roots := ca.Pool()
	roots.AppendCertsFromPEM(pem)
	sec, err := transport.NewTLS(issue(ca, transport.Identity{Cluster: cluster, Domain: "dom", Node: "server"}, time.Hour), roots, cluster)
	if err != nil {
		t.Fatal(err)
	}

	clients := []struct {
		name string
		cert *tls.Certificate
		want string
	}{
		{"no certificate", nil, "didn't provide a certificate"},
		{"unknown authority", ptr(issue(otherCA, node, time.Hour)), "unknown authority"},
		{"other cluster", ptr(issue(otherCluster, transport.Identity{Cluster: "other", Domain: "dom", Node: "client"}, time.Hour)), `is not of cluster "metro"`},
		{"expired", ptr(issue(ca, node, time.Nanosecond)), "expired"},
	}
	for _, tt := range clients {
		t.Run(tt.name, func(t *testing.T) {
			core, logs := observer.New(zapcore.WarnLevel)
			logged := make(chan struct{}, 1)
			lg := zap.New(zapcore.RegisterHooks(core, func(zapcore.Entry) error {
				select {
				case logged <- struct{}{}:
				default: // of another attempt
				}
				return nil
			}))
			addr := serve(t, sec.WithLogger(lg), sessions{serve: ack})
			conf := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
			if tt.cert != nil {
				conf.Certificates = []tls.Certificate{*tt.cert}
			}
			cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
			if err != nil {
				t.Fatal(err)
			}
			defer cc.Close()
			_, err = pb.NewReplicationClient(cc).Seal(t.Context(), &pb.SealRequest{})
			// With TLS 1.3 the client learns of it after its own handshake, and perhaps only
			// that the connection is gone: the server's log has the reason.
			if status.Code(err) != codes.Unavailable {
				t.Errorf("got %v", err)
			}
			<-logged
			if why := logs.TakeAll()[0].ContextMap()["error"].(string); !strings.Contains(why, tt.want) {
				t.Errorf("logged as %q, want %q", why, tt.want)
			}
		})
	}

	addr := serve(t, sec, sessions{serve: ack})
	servers := []struct {
		name string
		addr string
		want string
	}{
		{"other node", addr, "but tandem://metro/dom/server answered"},
		{"unknown authority", fakeServer(t, issue(otherCA, transport.Identity{Cluster: cluster, Domain: "dom", Node: "wanted"}, time.Hour)), "unknown authority"},
		{"expired", fakeServer(t, issue(ca, transport.Identity{Cluster: cluster, Domain: "dom", Node: "wanted"}, time.Nanosecond)), "expired"},
	}
	for _, tt := range servers {
		t.Run("server/"+tt.name, func(t *testing.T) {
			p := dial(t, security(t, "client"), "wanted", tt.addr)
			_, err := p.Session(t.Context())
			if !errors.Is(err, transport.ErrDisconnected) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

// fakeServer serves nothing with cert.
func fakeServer(t *testing.T, cert tls.Certificate) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"tandem/1"}})))
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// TestOldTLS: nothing older than TLS 1.3.
func TestOldTLS(t *testing.T) {
	addr := serve(t, security(t, "server"), sessions{serve: ack})
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if err == nil {
		c.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

func TestLoadTLS(t *testing.T) {
	dir := t.TempDir()
	ca, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	id := transport.Identity{Cluster: cluster, Domain: "dom", Node: "n1"}
	cert, err := ca.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.SaveNode(dir, cert)
	if err != nil {
		t.Fatal(err)
	}
	s, err := transport.LoadTLS(files, cluster)
	if err != nil || s.Self() != id {
		t.Fatalf("%v, %v", s, err)
	}
	if _, err := transport.LoadTLS(files, "other"); !errors.Is(err, transport.ErrIdentity) || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("another cluster: %v", err)
	}
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]transport.TLSFiles{
		"no certificate":      {CA: files.CA, Cert: filepath.Join(dir, "none"), Key: files.Key},
		"no key":              {CA: files.CA, Cert: files.Cert, Key: garbage},
		"no authority":        {CA: filepath.Join(dir, "none"), Cert: files.Cert, Key: files.Key},
		"garbage authority":   {CA: garbage, Cert: files.Cert, Key: files.Key},
		"garbage certificate": {CA: files.CA, Cert: garbage, Key: files.Key},
		"authority of others": {CA: files.Cert, Cert: files.Cert, Key: files.Key},
	} {
		if name == "authority of others" {
			other, err := pki.NewCA(cluster, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			f.CA = filepath.Join(dir, "other.crt")
			if err := other.Save(f.CA, filepath.Join(dir, "other.key")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := transport.LoadTLS(f, cluster); !errors.Is(err, transport.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := transport.NewTLS(tls.Certificate{}, x509.NewCertPool(), cluster); !errors.Is(err, transport.ErrConfig) {
		t.Errorf("nothing: %v", err)
	}
}

// TestInsecure: works on loopback, and nowhere else.
func TestInsecure(t *testing.T) {
	self := transport.Identity{Cluster: cluster, Domain: "dom", Node: "self"}
	s, err := transport.InsecureLoopback(self)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dial(t, s, "self", serve(t, s, sessions{serve: ack})).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := transport.InsecureLoopback(transport.Identity{}); !errors.Is(err, transport.ErrIdentity) {
		t.Errorf("no name: %v", err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	far := farConn{a, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
	if _, _, err := s.ServerCredentials().ServerHandshake(far); !errors.Is(err, transport.ErrNotLoopback) {
		t.Errorf("from afar: %v", err)
	}
	if _, _, err := s.ClientCredentials("x").ClientHandshake(t.Context(), "", far); !errors.Is(err, transport.ErrNotLoopback) {
		t.Errorf("to afar: %v", err)
	}
	// A node with certificates does not talk to one without.
	addr := serve(t, s, sessions{serve: ack})
	if _, err := dial(t, security(t, "client"), "self", addr).Session(t.Context()); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("certificates with none: %v", err)
	}
	addr = serve(t, security(t, "server"), sessions{serve: ack})
	if _, err := dial(t, s, "server", addr).Session(t.Context()); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("none with certificates: %v", err)
	}
}

type farConn struct {
	net.Conn
	remote net.Addr
}

func (c farConn) RemoteAddr() net.Addr { return c.remote }

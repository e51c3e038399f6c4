package raftkv

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
	"github.com/tandem-storage/tandem/kvdb/kvdbtest"
)

// memberEnv, when set, makes the test binary a member instead: a process of
// its own that can be killed and stopped.
const memberEnv = "TANDEM_RAFTKV_TEST_MEMBER"

func TestMain(m *testing.M) {
	if raw := os.Getenv(memberEnv); raw != "" {
		if err := runMember(raw); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// processOptions are what a member process is told.
type processOptions struct {
	Node, Dir, Marker, PeerListen, ClientAdvertise string
	Bootstrap                                      bool
	Peers                                          []string
	Files                                          kvdbtest.Files
}

func runMember(raw string) error {
	var p processOptions
	if err := json.Unmarshal([]byte(raw), &p); err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(p.Files.Cert, p.Files.Key)
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(p.Files.CA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	server := &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	lg, err := zap.NewDevelopment()
	if err != nil {
		return err
	}
	m, err := OpenMember(Options{
		Node: p.Node, Dir: p.Dir, Marker: p.Marker, Bootstrap: p.Bootstrap, Peers: p.Peers,
		PeerListen: p.PeerListen, ClientAdvertise: p.ClientAdvertise,
		ServerTLS: server, ClientTLS: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}, Logger: lg,
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", p.ClientAdvertise)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(server)))
	m.Register(s)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the test
		os.Exit(0)
	}()
	return s.Serve(l)
}

type process struct {
	o   processOptions
	cmd *exec.Cmd
	log *os.File
}

// processCluster is three members, each in a process.
type processCluster struct {
	t     testing.TB
	certs *kvdbtest.Authority
	all   []*process
	peers *pool
}

func newProcessCluster(t testing.TB) *processCluster {
	t.Helper()
	if testing.Short() {
		t.Skip("runs and kills processes")
	}
	dir := t.TempDir()
	c := &processCluster{t: t, certs: kvdbtest.NewAuthority(t)}
	c.peers = newPool(c.certs.Client("test"))
	t.Cleanup(func() { _ = c.peers.close() })
	for i := range 3 {
		name := fmt.Sprintf("n%d", i+1)
		log, err := os.Create(filepath.Join(dir, name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		p := &process{log: log, o: processOptions{
			Node: name, Dir: filepath.Join(dir, name), Marker: filepath.Join(dir, name+".marker"), Bootstrap: i == 0,
			PeerListen: kvdbtest.FreeAddress(t), ClientAdvertise: kvdbtest.FreeAddress(t), Files: c.certs.Files(dir, name),
		}}
		if i > 0 {
			p.o.Peers = c.endpoints()
		}
		c.all = append(c.all, p)
		c.start(p)
	}
	t.Cleanup(func() {
		for _, p := range c.all {
			c.kill(p)
			if t.Failed() {
				out, _ := os.ReadFile(p.log.Name())
				t.Logf("%s:\n%s", p.o.Node, out[max(0, len(out)-8000):])
			}
			_ = p.log.Close()
		}
	})
	for range 600 {
		if st := c.status(c.all[0]); len(st.GetMembers()) == 3 {
			return c
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Fatal("no cluster of three within 30s")
	return nil
}

func (c *processCluster) start(p *process) {
	c.t.Helper()
	raw, err := json.Marshal(p.o)
	if err != nil {
		c.t.Fatal(err)
	}
	p.cmd = exec.Command(os.Args[0], "-test.run=^$")
	p.cmd.Env = append(os.Environ(), memberEnv+"="+string(raw))
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if _, err := p.cmd.StdinPipe(); err != nil {
		c.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *processCluster) kill(p *process) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}

func (c *processCluster) signal(p *process, s syscall.Signal) {
	c.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *processCluster) endpoints() []string {
	var all []string
	for _, p := range c.all {
		all = append(all, p.o.ClientAdvertise)
	}
	return all
}

func (c *processCluster) client(endpoints ...string) kvdb.Store {
	c.t.Helper()
	s, err := OpenClient(ClientOptions{Endpoints: endpoints, TLS: c.certs.Client("client"), Logger: testLogger(c.t).Named("client")})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = s.Close() })
	return s
}

func (c *processCluster) status(p *process) *kvdbpb.StatusReply {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := c.peers.ready(ctx, p.o.ClientAdvertise)
	if err != nil {
		return nil
	}
	st, err := kvdbpb.NewMembersClient(conn).Status(ctx, &kvdbpb.StatusRequest{})
	if err != nil {
		return nil
	}
	return st
}

// leader waits for a process that takes itself for the leader; follower is another.
func (c *processCluster) leader(but ...*process) (leader, follower *process) {
	c.t.Helper()
	for range 600 {
		for i, p := range c.all {
			if len(but) > 0 && p == but[0] {
				continue
			}
			if st := c.status(p); st != nil && st.GetLeaderId() != "" && st.GetLeaderId() == st.GetMemberId() {
				return p, c.all[(i+1)%len(c.all)]
			}
		}
		<-time.After(50 * time.Millisecond)
	}
	c.t.Fatal("no leader within 30s")
	return nil, nil
}

// progress waits until the counters have made ten more changes, and returns how long the first took.
func (c *processCluster) progress() time.Duration {
	c.t.Helper()
	s := c.client(c.endpoints()...)
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	start := time.Now()
	var first time.Duration
	_, rev, err := s.List(ctx, "progress")
	if err != nil {
		c.t.Fatal(err)
	}
	w := s.Watch(ctx, "counter", rev)
	for i := range 10 {
		if ev := <-w; ev.Err != nil {
			c.t.Fatalf("no progress: %v", ev.Err)
		}
		if i == 0 {
			first = time.Since(start)
		}
	}
	return first
}

// Counters go on while members are killed and come back: no increment is lost,
// none is applied twice, and a watch sees each, in order, through all of it.
func TestProcessesKilled(t *testing.T) {
	c := newProcessCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	watched := c.client(c.endpoints()...).Watch(ctx, "counter", 0)

	const clients = 4
	stop := make(chan struct{})
	counts := make([]int, clients)
	errs := make([]error, clients)
	var wg sync.WaitGroup
	for i := range clients {
		s := c.client(c.endpoints()...)
		wg.Go(func() { counts[i], errs[i] = kvdbtest.CountUntil(ctx, s, "counter", strconv.Itoa(i), stop) })
	}
	c.progress()
	for round := range 3 {
		leader, follower := c.leader()
		for what, victim := range map[string]*process{"leader": leader, "follower": follower} {
			c.kill(victim)
			took := c.progress()
			t.Logf("round %d: %s killed, next change after %v", round, what, took)
			if took > 10*time.Second { // about 3 s on a machine that is not busy
				t.Errorf("%s killed: no change for %v", what, took)
			}
			c.start(victim)
			c.progress()
		}
	}
	for _, p := range c.all { // all at once, as when the power fails
		c.kill(p)
	}
	for _, p := range c.all {
		c.start(p)
	}
	c.progress()
	close(stop)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	kv, err := c.client(c.endpoints()...).Get(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}
	if got := kvdbtest.CounterValue(kv); got != total {
		t.Errorf("the counter is at %d after %d increments", got, total)
	}
	for n := 1; n <= total; n++ {
		ev := <-watched
		if ev.Err != nil || kvdbtest.CounterValue(ev.KV) != n {
			t.Fatalf("event %d: %+v", n, ev)
		}
	}
	t.Logf("%d increments", total)
}

// A leader whose process stood still while another took over does not answer
// from what it remembers, though it has not yet learnt of its successor, and
// the answers to its last heartbeats wait in its sockets.
func TestPausedLeaderReadsNothingStale(t *testing.T) {
	c := newProcessCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for round := range 3 {
		old, _ := c.leader()
		before, after := fmt.Sprintf("before %d", round), fmt.Sprintf("after %d", round)
		pinned := c.client(old.o.ClientAdvertise)
		if _, err := kvdb.Put(ctx, pinned, "k", []byte(before)); err != nil {
			t.Fatal(err)
		}
		c.signal(old, syscall.SIGSTOP)
		var others []string
		for _, p := range c.all {
			if p != old {
				others = append(others, p.o.ClientAdvertise)
			}
		}
		c.leader(old)
		if _, err := kvdb.Put(ctx, c.client(others...), "k", []byte(after)); err != nil {
			t.Fatal(err)
		}

		// These are sent to the stopped process, and it finds them when it goes on.
		const readers = 8
		results := make(chan string, readers)
		sent := make(chan struct{}, readers)
		for range readers {
			go func() {
				conn, err := c.peers.get(old.o.ClientAdvertise)
				if err == nil {
					sent <- struct{}{}
					var reply *kvdbpb.TxnReply
					reply, err = kvdbpb.NewKVClient(conn).Txn(ctx, &kvdbpb.TxnRequest{Txn: txnToProto(kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: "k"}}})})
					if err == nil && reply.GetFailure() == nil {
						results <- string(reply.GetGets()[0].GetKv().GetValue())
						return
					}
				}
				results <- ""
			}()
		}
		for range readers {
			<-sent
		}
		c.signal(old, syscall.SIGCONT)
		for range readers {
			if got := <-results; got != "" && got != after {
				t.Errorf("round %d: the old leader answers %q, after %q was written", round, got, after)
			}
		}
	}
}

package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/kvdb/etcdkv"
	"github.com/tandem-storage/tandem/kvdb/raftkv"
	"github.com/tandem-storage/tandem/replication/transport"
)

// startStore opens the kvdb and then the port for other nodes, on which an
// embedded member is reached too.
func (d *daemon) startStore(g *errgroup.Group, stops *stopper) error {
	var err error
	switch {
	case d.c.KVDB.Kind == config.KVDBEtcd:
		err = d.openEtcd(stops)
	case d.c.KVDB.Raft.Member:
		err = d.openMember(stops)
	default:
		err = d.openClient(stops)
	}
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", d.c.Peer.Listen)
	if err != nil {
		return fmt.Errorf("listen for other nodes (peer.listen): %w", err)
	}
	serveOn(g, d.peerSrv, l)
	return nil
}

func (d *daemon) openEtcd(stops *stopper) error {
	e := &d.c.KVDB.Etcd
	password, err := e.Password()
	if err != nil {
		return err
	}
	tlsConfig, err := etcdTLS(&e.TLS)
	if err != nil {
		return err
	}
	store, err := etcdkv.Open(etcdkv.Options{
		Endpoints: e.Endpoints, TLS: tlsConfig, Username: e.Username, Password: password, Logger: d.lg,
	})
	if err != nil {
		return err
	}
	d.store = store
	stops.push(d.store.Close)
	d.kvdbTerm = func(context.Context) (uint64, error) { return store.Term(), nil }
	d.kvdbInfo = func(ctx context.Context) clusterdomain.KvdbStatus {
		return clusterdomain.KvdbStatus{Kind: "etcd", Endpoints: e.Endpoints, Err: d.probe(ctx)}
	}
	return nil
}

// etcdTLS reads the files for TLS towards etcd.
func etcdTLS(f *config.EtcdTLS) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("kvdb.etcd.tls.ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("kvdb.etcd.tls.ca: %s has no certificate in PEM form", f.CA)
		}
	}
	if f.Cert != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("kvdb.etcd.tls.cert: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// probe asks the kvdb for something, for as long as ctx allows.
func (d *daemon) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := d.store.Get(ctx, clusterdomain.IncarnationKey(d.c.ClusterName))
	return err
}

func (d *daemon) openMember(stops *stopper) error {
	r := &d.c.KVDB.Raft
	o := raftkv.Options{
		Node: d.c.NodeID, Dir: filepath.Join(d.c.DataDir, "kvdb"), Marker: filepath.Join(d.c.DataDir, "kvdb-member"),
		Bootstrap: r.Bootstrap, Witness: d.c.Role == config.RoleWitness,
		ServerTLS: d.security.ServerTLS(), ClientTLS: d.security.ClientTLS(), Logger: d.lg,
	}
	if len(r.Members) > 0 {
		o.PeerListen, o.ClientAdvertise = r.Listen, d.c.Peer.Advertise
		o.Bootstrap = r.Bootstrap && r.Members[0].ID == d.c.NodeID // one founds, the others join
		for _, m := range r.Members {
			if m.ID == d.c.NodeID {
				o.PeerAdvertise = m.RaftAddr
				continue
			}
			o.Peers = append(o.Peers, m.PeerAddr)
		}
		for _, m := range r.Members {
			o.Candidates = append(o.Candidates, m.ID)
		}
		o.Caller = func(ctx context.Context) (string, error) {
			id, err := transport.PeerIdentity(ctx)
			return string(id.Node), err
		}
	}
	m, err := raftkv.OpenMember(o)
	if err != nil {
		return err
	}
	stops.push(m.Close)
	m.Register(d.peerSrv)
	d.store = m
	d.kvdbTerm = func(context.Context) (uint64, error) { return m.Status().Term, nil }
	d.kvdbInfo = func(ctx context.Context) clusterdomain.KvdbStatus { return d.raftStatus(ctx, m.Status()) }
	d.kvdbRemove = func(ctx context.Context, ref string) error {
		switch err := m.RemoveMember(ctx, ref); {
		case errors.Is(err, raftkv.ErrMemberNotFound):
			return fmt.Errorf("%w: %w", clusterdomain.ErrKvdbMember, err)
		case errors.Is(err, raftkv.ErrMajority):
			return fmt.Errorf("%w: %w", clusterdomain.ErrKvdbMajority, err)
		default:
			return err
		}
	}
	return nil
}

// raftStatus shows the members of the embedded kvdb as st has them.
func (d *daemon) raftStatus(ctx context.Context, st raftkv.Status) clusterdomain.KvdbStatus {
	s := clusterdomain.KvdbStatus{Kind: "raft", Err: st.Err}
	if s.Err == nil {
		s.Err = d.probe(ctx)
	}
	for _, p := range st.Members {
		role := "follower"
		if p.ID == st.LeaderID {
			role, s.Leader = "leader", p.Node
		}
		s.Members = append(s.Members, clusterdomain.KvdbMember{ID: p.ID, Name: p.Node, Address: p.ClientAddress, Role: role, Witness: p.Witness, Healthy: s.Err == nil})
		s.Endpoints = append(s.Endpoints, p.ClientAddress)
	}
	return s
}

func (d *daemon) openClient(stops *stopper) error {
	var endpoints []string
	for _, m := range d.c.KVDB.Raft.Members {
		endpoints = append(endpoints, m.PeerAddr)
	}
	s, err := raftkv.OpenClient(raftkv.ClientOptions{Endpoints: endpoints, TLS: d.security.ClientTLS(), Logger: d.lg})
	if err != nil {
		return err
	}
	stops.push(s.Close)
	d.store = s
	d.kvdbTerm = func(ctx context.Context) (uint64, error) {
		st, err := s.Status(ctx)
		return st.Term, err
	}
	d.kvdbInfo = func(ctx context.Context) clusterdomain.KvdbStatus {
		st, err := s.Status(ctx)
		if err != nil {
			return clusterdomain.KvdbStatus{Kind: "raft", Endpoints: endpoints, Err: err}
		}
		return d.raftStatus(ctx, st)
	}
	return nil
}

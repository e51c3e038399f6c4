package raftkv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"regexp"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
)

// Errors of members, beside those of kvdb. Test with errors.Is.
var (
	// ErrMemberLost: this node was a member and its data directory is gone. See the package comment for what to do.
	ErrMemberLost = errors.New("raftkv: this node was a member and its data are gone")

	// ErrClusterExists: a bootstrap was asked for, but a peer belongs to a cluster.
	ErrClusterExists = errors.New("raftkv: a cluster exists already")

	// ErrMemberExists: a member of this node's name exists; it has to be removed before the node can join anew.
	ErrMemberExists = errors.New("raftkv: a member of this node name exists")

	// ErrMemberNotFound: there is no member of that id.
	ErrMemberNotFound = errors.New("raftkv: no such member")
	// ErrMajority: without the member, no majority of the others would answer.
	ErrMajority = errors.New("raftkv: the members that remain would have no majority")
)

// Options of a member. Node and Dir are needed; a lone member that only its own
// process uses needs Bootstrap and nothing else.
type Options struct {
	// Node is this node's name, unique in the cluster.
	Node string

	// Dir holds the log, the snapshots and the identity. Nothing else may be in it.
	Dir string

	// Marker is a file outside Dir, best on another disk, that remembers that this
	// node is a member, so that it notices when Dir is gone. Empty: none.
	Marker string

	// Bootstrap and Peers say how a node with an empty Dir becomes a member; see
	// the package comment. They may stay set afterwards. Peers are client addresses.
	Bootstrap bool
	Peers     []string

	// Caller tells the node that a request on the registered server comes from. Nodes add
	// themselves as members; whatever else changes the members is refused unless it comes from one. Nil: everything is let in.
	Caller func(ctx context.Context) (node string, err error)
	// Candidates are the nodes that may become members. Nil: all.
	Candidates []string

	// Witness: prefer that another member leads.
	Witness bool

	// PeerListen is where the members' own traffic is taken, "host:port". Empty: a
	// lone member that cannot be joined.
	PeerListen string
	// PeerAdvertise is what the others dial. Default: the address listened on.
	PeerAdvertise string
	// ClientAdvertise is where the grpc.Server that the member is registered on can
	// be dialled by other nodes. Needed with PeerListen.
	ClientAdvertise string

	// ServerTLS must verify client certificates; ClientTLS must bring one. Both or
	// none: none is for tests and for a lone member.
	ServerTLS *tls.Config // for PeerListen
	ClientTLS *tls.Config // for dialling PeerAdvertise and ClientAdvertise of others

	// HeartbeatTimeout is how long a follower hears nothing from the leader before it
	// asks for an election, up to twice that at random. Default 750 ms.
	HeartbeatTimeout time.Duration
	// ElectionTimeout is how long an election may take, up to twice that. Default 1 s.
	ElectionTimeout time.Duration
	// LeaderLeaseTimeout is how long a leader goes on without a majority. Default 500 ms.
	LeaderLeaseTimeout time.Duration

	// SnapshotThreshold is the number of log entries after which a snapshot is
	// taken; as many are kept behind it for followers. Default 4096.
	SnapshotThreshold uint64
	// SnapshotInterval is how often that is looked at. Default 30 s.
	SnapshotInterval time.Duration

	// KeepEvents is how many changes watches can go back, at least. Default 8192.
	KeepEvents int

	// RequestTimeout bounds a request whose context has no deadline. Default 10 s.
	RequestTimeout time.Duration

	Logger *zap.Logger // nil: none
}

var nodeName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$`)

func (o Options) withDefaults() Options {
	defaultTo(&o.HeartbeatTimeout, 750*time.Millisecond)
	defaultTo(&o.ElectionTimeout, time.Second)
	defaultTo(&o.LeaderLeaseTimeout, 500*time.Millisecond)
	defaultTo(&o.SnapshotThreshold, 4096)
	defaultTo(&o.SnapshotInterval, 30*time.Second)
	defaultTo(&o.KeepEvents, 8192)
	defaultTo(&o.RequestTimeout, 10*time.Second)
	defaultTo(&o.Logger, zap.NewNop())
	return o
}

func defaultTo[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (o Options) check() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("%w: raftkv: %s", kvdb.ErrInvalid, fmt.Sprintf(format, args...))
	}
	switch {
	case !nodeName.MatchString(o.Node):
		return invalid("node name %q: want 1 to 63 letters, digits, dots and hyphens", o.Node)
	case o.Dir == "":
		return invalid("no data directory")
	case !o.Bootstrap && len(o.Peers) == 0:
		return invalid("neither bootstrap nor peers: nothing says which cluster this is")
	case o.PeerListen == "" && len(o.Peers) > 0:
		return invalid("peers, but no address to be reached at by them (PeerListen)")
	case o.PeerListen != "" && o.ClientAdvertise == "":
		return invalid("no ClientAdvertise: the other members could not pass requests on to this one")
	case (o.ServerTLS == nil) != (o.ClientTLS == nil):
		return invalid("ServerTLS and ClientTLS go together")
	case o.ServerTLS != nil && o.ServerTLS.ClientAuth != tls.RequireAndVerifyClientCert:
		return invalid("ServerTLS must require and verify client certificates")
	}
	return nil
}

// ClientOptions of OpenClient. Endpoints is needed.
type ClientOptions struct {
	// Endpoints are client addresses of members; any one that is reachable will do.
	Endpoints []string

	// ClusterID, if set, is the only cluster to be used.
	ClusterID string

	TLS *tls.Config // nil: none, for tests

	// RequestTimeout bounds a request whose context has no deadline. Default 10 s.
	RequestTimeout time.Duration

	Logger *zap.Logger // nil: none
}

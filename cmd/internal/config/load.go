package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Flags are the few settings that the command line may override, so that one file is good for many nodes. Empty: as in the file.
type Flags struct {
	NodeID   string
	LogLevel string
	// AdvertiseHost is what other nodes dial, with the port of peer.listen: peer.advertise.
	AdvertiseHost string
	// MemberIfListed makes a node that kvdb.raft.members does not list one that only asks them, whatever kvdb.raft.member and
	// kvdb.raft.bootstrap say.
	MemberIfListed bool
}

// apply sets in c what the flags say.
func (f *Flags) apply(c *Config) error {
	if f.NodeID != "" {
		c.NodeID = f.NodeID
	}
	if f.LogLevel != "" {
		c.Log.Level = f.LogLevel
	}
	if f.AdvertiseHost != "" {
		_, port, err := net.SplitHostPort(c.Peer.Listen)
		if err != nil {
			return fmt.Errorf("config: --advertise-host needs the port of peer.listen, which is %q: write host:port there", c.Peer.Listen)
		}
		c.Peer.Advertise = net.JoinHostPort(f.AdvertiseHost, port)
	}
	return nil
}

// listed reports whether members has this node.
func (c *Config) listed() bool {
	return slices.ContainsFunc(c.KVDB.Raft.Members, func(m RaftMember) bool { return m.ID == c.NodeID })
}

// Default returns the configuration that stands when nothing is written. What is
// empty in it is derived by Load and Parse.
func Default() *Config {
	c := &Config{
		APIVersion:  APIVersion,
		Kind:        Kind,
		ClusterName: "tandem",
		Domain:      "default",
		Role:        RoleNode,
		DataDir:     "/var/lib/tandem",
		RunDir:      "/run/tandem",
		Peer:        Peer{Listen: "127.0.0.1:9701"},
		TLS:         TLS{Insecure: true},
		KVDB:        KVDB{Kind: KVDBRaft, Raft: Raft{Member: true, Listen: "127.0.0.1:9702", Bootstrap: true}},
		Frontends:   Frontends{Default: FrontendFuseLoop},
		Replication: Replication{ReadFence: FenceLease},
		Failover:    Failover{Enabled: true, Profile: ProfileDefault},
		Log:         Log{Level: "info", Format: LogJSON},
	}
	for i := range limits {
		limits[i].field.set(c, limits[i].Default)
	}
	return c
}

// Load returns the configuration of the file at path (none if path is empty)
// under the flags, complete and valid. The error is an Errors with everything that is wrong,
// or says that the file cannot be read.
func Load(path string, f Flags) (*Config, error) {
	if path == "" {
		return parse("", nil, f)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config: cannot read the file: %w", err)
	}
	return parse(path, data, f)
}

// Parse is Load for the contents of a file; name stands for it in errors.
func Parse(name string, data []byte, f Flags) (*Config, error) {
	if data == nil {
		data = []byte{}
	}
	return parse(name, data, f)
}

// parse is Parse; nil data means that there is no file.
func parse(name string, data []byte, f Flags) (*Config, error) {
	c := Default()
	d := &decoder{file: name, lines: map[string]int{}}
	if data != nil {
		d.decode(data, c)
		if len(d.errs) > 0 {
			return nil, d.errs
		}
		c.adjustDefaults(d.lines)
	}
	if err := f.apply(c); err != nil {
		return nil, err
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	if f.MemberIfListed && !c.listed() {
		c.KVDB.Raft.Member, c.KVDB.Raft.Bootstrap = false, false
	}
	if err := c.Validate(); err != nil {
		var errs Errors
		if errors.As(err, &errs) {
			errs.locate(name, d.lines)
		}
		return nil, err
	}
	return c, nil
}

// Of the aggressive profile.
const (
	aggressiveConfirm = 3 * time.Second
	aggressiveNodeTTL = 5 * time.Second
)

// adjustDefaults changes, unless the file writes them out, the two defaults that are meant for a lone node only: no TLS, and
// founding a cluster; and those that failover.profile sets.
func (c *Config) adjustDefaults(written map[string]int) {
	has := func(key string) bool { _, ok := written[key]; return ok }
	if !has("tls.insecure") && (c.TLS.CA != "" || c.TLS.Cert != "" || c.TLS.Key != "") {
		c.TLS.Insecure = false
	}
	if !has("kvdb.raft.bootstrap") && (len(c.KVDB.Raft.Members) > 0 || !c.KVDB.Raft.Member) {
		c.KVDB.Raft.Bootstrap = false
	}
	if c.Failover.Profile == ProfileAggressive {
		if !has("failover.confirm") {
			c.Failover.Confirm = aggressiveConfirm
		}
		if !has("failover.nodeTTL") {
			c.Failover.NodeTTL = aggressiveNodeTTL
		}
	}
}

// complete derives what was left empty.
func (c *Config) complete() error {
	if c.NodeID == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("config: nodeID is empty and the host name is unknown; set nodeID: %w", err)
		}
		c.NodeID = strings.ToLower(name) // as names are, see nameRE
	}
	if len(c.Pools) == 0 && c.Role == RoleNode {
		c.Pools = []Pool{{Path: filepath.Join(c.DataDir, "pool")}}
	}
	setEmpty(&c.API.Socket, filepath.Join(c.RunDir, "tandemd.sock"))
	setEmpty(&c.Frontends.NBD.Socket, filepath.Join(c.RunDir, "nbd.sock"))
	setEmpty(&c.Frontends.FuseLoop.Dir, filepath.Join(c.RunDir, "fuse"))
	setEmpty(&c.Frontends.Device.Socket, filepath.Join(c.RunDir, "device.sock"))
	setEmpty(&c.Frontends.Device.Dir, filepath.Join(c.RunDir, "device"))
	setEmpty(&c.Peer.Advertise, c.Peer.Listen)
	if c.KVDB.Kind == KVDBRaft && c.KVDB.Raft.Member && len(c.KVDB.Raft.Members) == 0 {
		c.KVDB.Raft.Members = []RaftMember{{ID: c.NodeID, RaftAddr: c.KVDB.Raft.Listen, PeerAddr: c.Peer.Advertise}}
	}
	return nil
}

func setEmpty(s *string, v string) {
	if *s == "" {
		*s = v
	}
}

// listeners returns every TCP address that the node listens on, by key.
func (c *Config) listeners() []keyed {
	ls := []keyed{{"peer.listen", c.Peer.Listen}}
	if c.API.Listen != "" {
		ls = append(ls, keyed{"api.listen", c.API.Listen})
	}
	if c.KVDB.Kind == KVDBRaft && c.KVDB.Raft.Member {
		ls = append(ls, keyed{"kvdb.raft.listen", c.KVDB.Raft.Listen})
	}
	if c.Frontends.NBD.Listen != "" {
		ls = append(ls, keyed{"frontends.nbd.listen", c.Frontends.NBD.Listen})
	}
	return ls
}

// keyed is a text with the key where it stands.
type keyed struct{ key, value string }

// isLoopback reports whether nobody outside this machine can reach addr.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// isWildcard reports whether addr stands for every address of the machine.
func isWildcard(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	return slices.Contains([]string{"", "0.0.0.0", "::"}, host)
}

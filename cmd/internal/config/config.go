// Package config is the configuration of tandemd: one YAML file, decoded
// strictly, over defaults that start a useful single node without any file.
//
// Order: defaults < file < flags. Then what was left empty is derived from the
// rest (Config.complete), and everything is checked at once (Config.Validate).
// The comments on the fields of this file are the text of config.sample.yaml
// and of docs/reference/config.md: go test ./cmd/internal/config -update
// writes both anew.
package config

import "time"

// APIVersion and Kind head every file.
const (
	APIVersion = "tandem-storage.github.io/v1"
	Kind       = "Config"
)

// Config is the whole configuration. Get one from Load, Parse or Default; treat
// it as read-only from then on.
type Config struct {
	// Format of this file.
	APIVersion string `yaml:"apiVersion"`
	// What this file is.
	Kind string `yaml:"kind"`
	// Name of the cluster, the same on every node. It is part of every certificate: nodes of another cluster are refused.
	ClusterName string `yaml:"clusterName"`
	// Name of this node, unique in the cluster and never changed. Empty: the host name, in lower case.
	NodeID string `yaml:"nodeID"`
	// Cluster domain (site) in which this node stands.
	Domain string `yaml:"domain"`
	// "node", or "witness": a kvdb member in a third place that holds no data.
	Role Role `yaml:"role"`
	// Directory for what must survive a restart: the embedded kvdb, the records of attachments, and the pool if none is named.
	DataDir string `yaml:"dataDir"`
	// Directory for sockets and mount points; it may be emptied by a reboot.
	RunDir string `yaml:"runDir"`
	// Directories that hold replicas, each on its own XFS or ext4. Empty: <dataDir>/pool. A witness has none.
	Pools []Pool `yaml:"pools"`
	// Labels of this node, by which volumes may choose where their replicas lie, as in {rack: r1, disk: nvme}.
	Labels map[string]string `yaml:"labels"`
	// How other nodes reach this one.
	Peer Peer `yaml:"peer"`
	// How tandemctl reaches this node.
	API API `yaml:"api"`
	// Mutual TLS between nodes, and towards api.listen and frontends.nbd.listen. Write this block with ca, cert and key wherever a node listens on more than loopback.
	TLS TLS `yaml:"tls"`
	// The small consistent store that all nodes share.
	KVDB KVDB `yaml:"kvdb"`
	// How attached volumes are shown to the host.
	Frontends Frontends `yaml:"frontends"`
	// The CSI driver, for Kubernetes and others that know CSI.
	CSI CSI `yaml:"csi"`
	// Timers and bounds of replication, the same on every node.
	Replication Replication `yaml:"replication"`
	// When another domain takes over by itself from one that is lost. The same on every node.
	Failover Failover `yaml:"failover"`
	// Log output, on standard error.
	Log Log `yaml:"log"`
}

// Role of a node.
type Role string

// Roles.
const (
	RoleNode    Role = "node"
	RoleWitness Role = "witness"
)

// Pool is a directory that holds replicas.
type Pool struct {
	// Absolute path of the directory.
	Path string `yaml:"path"`
	// Accept a file system other than XFS and ext4. Tandem's promises about power loss were tested on these two only.
	AllowAnyFS bool `yaml:"allowAnyFS"`
	// Keep no checksums of the blocks on the disk. What the disk returns is believed then.
	NoChecksums bool `yaml:"noChecksums"`
	// What volumes that ask for a class of pools call this one, as in nvme.
	Class string `yaml:"class"`
}

// Peer is the address for other nodes.
type Peer struct {
	// Address to listen on for other nodes, host:port.
	Listen string `yaml:"listen"`
	// Address that other nodes dial. Empty: peer.listen. Needed when peer.listen names no single address.
	Advertise string `yaml:"advertise"`
}

// API is where operators reach the node.
type API struct {
	// Unix socket for tandemctl; who may open it may do everything. Empty: <runDir>/tandemd.sock.
	Socket string `yaml:"socket"`
	// TCP address for tandemctl from other machines, host:port. Empty: none.
	Listen string `yaml:"listen"`
}

// TLS names the PEM files for mutual TLS.
type TLS struct {
	// No TLS. Allowed only while every address to listen on is loopback. False as soon as ca, cert or key is set.
	Insecure bool `yaml:"insecure"`
	// File with the certificate of the cluster's CA.
	CA string `yaml:"ca"`
	// File with this node's certificate, made by "tandemctl pki issue".
	Cert string `yaml:"cert"`
	// File with the private key to tls.cert.
	Key string `yaml:"key"`
}

// KVDBKind says which store the cluster uses.
type KVDBKind string

// Kinds of kvdb.
const (
	KVDBRaft KVDBKind = "raft"
	KVDBEtcd KVDBKind = "etcd"
)

// KVDB is the cluster's small consistent store.
type KVDB struct {
	// "raft": embedded in tandemd. "etcd": an etcd cluster that runs elsewhere.
	Kind KVDBKind `yaml:"kind"`
	// Settings for kind "etcd".
	Etcd Etcd `yaml:"etcd"`
	// Settings for kind "raft".
	Raft Raft `yaml:"raft"`
}

// Etcd says how to reach an etcd cluster.
type Etcd struct {
	// Client URLs of the etcd members, as in https://etcd-1:2379.
	Endpoints []string `yaml:"endpoints"`
	// TLS towards etcd, for https endpoints.
	TLS EtcdTLS `yaml:"tls"`
	// User name, when etcd's authentication is on.
	Username string `yaml:"username"`
	// File whose first line is the password of kvdb.etcd.username. Never logged; refused if others than its owner and group can read it.
	PasswordFile string `yaml:"passwordFile"`
}

// EtcdTLS names the PEM files for TLS towards etcd.
type EtcdTLS struct {
	// File with the CA of etcd's server certificates. Empty: the system's CAs.
	CA string `yaml:"ca"`
	// File with a client certificate, if etcd asks for one.
	Cert string `yaml:"cert"`
	// File with the private key to kvdb.etcd.tls.cert.
	Key string `yaml:"key"`
}

// Raft is the embedded kvdb.
type Raft struct {
	// This node is a member (it stores and votes). False: it only asks the members.
	Member bool `yaml:"member"`
	// Address to listen on for other members, host:port.
	Listen string `yaml:"listen"`
	// All members, the same list on every node: 1, or better 3 (one in each domain and the witness). Empty: this node alone.
	Members []RaftMember `yaml:"members"`
	// Create the store from raft.members if this node has none yet. False as soon as raft.members is set, unless written. Turn it off after the first start: a member that lost its disk must not found a second cluster.
	Bootstrap bool `yaml:"bootstrap"`
}

// RaftMember is one member of the embedded kvdb.
type RaftMember struct {
	// Its nodeID.
	ID string `yaml:"id"`
	// Address at which the other members reach its kvdb.raft.listen.
	RaftAddr string `yaml:"raftAddr"`
	// Address at which nodes that are no members ask it: its peer.advertise.
	PeerAddr string `yaml:"peerAddr"`
}

// FrontendKind names a front end. It is a plain string type of its own so that
// the configuration does not depend on the data path.
type FrontendKind string

// Front ends.
const (
	FrontendFuseLoop FrontendKind = "fuseloop"
	FrontendNBD      FrontendKind = "nbd"
	FrontendDevice   FrontendKind = "device"
)

// Frontends show attached volumes to the host.
type Frontends struct {
	// The one used when an attach names none: "fuseloop" (a real /dev/loopN, needs root and FUSE), "device" (the same, kept by a process of its
	// own, "tandemd device", so that it outlives restarts of this one) or "nbd" (a socket). The CSI driver uses "device" if that stands here, "fuseloop" otherwise.
	Default FrontendKind `yaml:"default"`
	// The NBD server.
	NBD NBD `yaml:"nbd"`
	// A FUSE file under a loop device.
	FuseLoop FuseLoop `yaml:"fuseloop"`
	// The process "tandemd device", which reads this same file.
	Device Device `yaml:"device"`
}

// NBD is where the NBD server listens.
type NBD struct {
	// Unix socket. Empty: <runDir>/nbd.sock.
	Socket string `yaml:"socket"`
	// TCP address, host:port; with TLS if tls has certificates. Empty: none. The standard port is 10809.
	Listen string `yaml:"listen"`
}

// FuseLoop is the loop device front end.
type FuseLoop struct {
	// Directory for its FUSE mount points. Empty: <runDir>/fuse.
	Dir string `yaml:"dir"`
}

// Device is the process that keeps devices over restarts of the daemon.
type Device struct {
	// Unix socket on which it is asked for devices. Empty: <runDir>/device.sock.
	Socket string `yaml:"socket"`
	// Directory for its FUSE mount points. Empty: <runDir>/device.
	Dir string `yaml:"dir"`
	// How long requests wait for a daemon that is gone before their device fails for good. 0: for ever.
	Patience time.Duration `yaml:"patience"`
}

// CSI is where orchestrators reach the node.
type CSI struct {
	// Unix socket on which csi.tandem.storage is served, as in /var/lib/kubelet/plugins/csi.tandem.storage/csi.sock; who may open it may do everything
	// with volumes. Empty: none is served.
	Socket string `yaml:"socket"`
	// Unix socket on which the kubelet is told of csi.socket, in the directory where it looks for plugins, as in
	// /var/lib/kubelet/plugins_registry/csi.tandem.storage-reg.sock. Kubelet and tandemd have to see csi.socket under the same path. Empty: it is told by
	// another program, or there is none.
	RegistrationSocket string `yaml:"registrationSocket"`
}

// Replication has the timers and bounds of protocol.md 19. Ranges, defaults and
// reasons are in limits.go.
type Replication struct {
	// Heartbeat between nodes.
	BeatInterval time.Duration `yaml:"beatInterval"`
	// Silence after which a peer is given up and its replicas are evicted. At least 4 beats.
	SuspectTimeout time.Duration `yaml:"suspectTimeout"`
	// A replica that has not answered one request for this long is evicted, though it beats. At least suspectTimeout.
	OpTimeout time.Duration `yaml:"opTimeout"`
	// A replica that answers more than one in a hundred writes later than this, for 30 s, is evicted if the volume can do without it, and
	// rests for a minute or more before it is resynced. 0: none is. Below opTimeout.
	EvictSlow time.Duration `yaml:"evictSlow"`
	// Deadline of one seal, prepare or commit of a takeover or an eviction. At least leaseGrant.
	SealTimeout time.Duration `yaml:"sealTimeout"`
	// How long a coordinator reads by a read lease. It renews it four times in that time, unless its consumer has asked for nothing for 5 s. At most leaseGrant less 1 %.
	LeaseTime time.Duration `yaml:"leaseTime"`
	// How long a replica keeps a read lease: for so long after the last one, and after its own start, it follows no other coordinator.
	LeaseGrant time.Duration `yaml:"leaseGrant"`
	// What lets a coordinator read: "lease", or "confirm" to ask the other in-sync replicas about each read, which takes a round trip
	// and trusts no clock.
	ReadFence ReadFence `yaml:"readFence"`
	// A planned move (switchover) of a volume is called off, or taken back, when the other node does not serve it for so long.
	HandoverTimeout time.Duration `yaml:"handoverTimeout"`
	// How long requests wait while a volume may not proceed, before they fail. At least opTimeout + sealTimeout.
	StallTimeout time.Duration `yaml:"stallTimeout"`
	// What the volumes that are attached on this node copy together to resync replicas, bytes per second. 0: no limit.
	ResyncRate Size `yaml:"resyncRate"`
	// How many of the volumes that are attached on this node are resynced at once. They share resyncRate.
	Resyncs int `yaml:"resyncs"`
	// How many resyncs read or write a pool of this node at once, wherever the volumes are attached. They share resyncRatePerPool.
	ResyncsPerPool int `yaml:"resyncsPerPool"`
	// What resyncs read and write in each pool of this node together, bytes per second. 0: no limit.
	ResyncRatePerPool Size `yaml:"resyncRatePerPool"`
	// What resyncs bring from each other domain to the replicas of this node together, bytes per second. 0: no limit.
	ResyncRatePerLink Size `yaml:"resyncRatePerLink"`
	// What a volume is resynced with, bytes per second, however slow that makes its consumer's requests. Above it the resync gives way
	// when more than one of a hundred takes more than twice as long as without.
	ResyncFloor Size `yaml:"resyncFloor"`
	// From the end of a verify of a volume that is attached on this node to the next one, which compares its replicas and their checksums. 0: only when asked.
	VerifyInterval time.Duration `yaml:"verifyInterval"`
	// What a verify reads of each replica, bytes per second. 0: no limit.
	VerifyRate Size `yaml:"verifyRate"`
	// Requests of consumers in flight per attached volume; more wait. A loop device sends 128 at most.
	MaxInflight int `yaml:"maxInflight"`
}

// ReadFence is how a coordinator makes sure that no other one has followed it when it reads.
type ReadFence string

// The fences.
const (
	FenceLease   ReadFence = "lease"   // read leases, which trust that clocks run alike
	FenceConfirm ReadFence = "confirm" // a confirmation of each read by every in-sync replica
)

// Profile names a set of defaults.
type Profile string

// Profiles of failover.
const (
	ProfileDefault    Profile = "default"
	ProfileAggressive Profile = "aggressive"
)

// Failover is automatic failover (protocol.md 10.3).
type Failover struct {
	// The nodes of this domain take over from one that is lost. False: an operator does.
	Enabled bool `yaml:"enabled"`
	// "default": storage is served again within 27 s of the loss of a domain. "aggressive": within about 10 s, with a confirm of 3s and a
	// nodeTTL of 5s unless they are set; what is taken for a loss is then a failure of the network of 8 s.
	Profile Profile `yaml:"profile"`
	// For how long a domain has to look lost without a break: its nodes not registered, its coordinators silent, the kvdb healthy. At least replication.suspectTimeout.
	Confirm time.Duration `yaml:"confirm"`
	// How long a node stays registered that the kvdb has not heard of. At least replication.suspectTimeout.
	NodeTTL time.Duration `yaml:"nodeTTL"`
	// Per cent of a domain's nodes whose registrations have to be gone. Below 100, nodes that are still there lose what they have attached.
	QuorumLoss int `yaml:"quorumLoss"`
	// From one automatic failover in the cluster to the next. At least nodeTTL + confirm.
	MinInterval time.Duration `yaml:"minInterval"`
	// This node's domain takes over also when it is STANDBY, and becomes ACTIVE by it.
	AutoPromote bool `yaml:"autoPromote"`
}

// LogFormat is how lines are written.
type LogFormat string

// Log formats.
const (
	LogJSON    LogFormat = "json"
	LogConsole LogFormat = "console"
)

// Log says what is logged, and how.
type Log struct {
	// "debug", "info", "warn" or "error". It can be changed while running.
	Level string `yaml:"level"`
	// "json" or "console".
	Format LogFormat `yaml:"format"`
}

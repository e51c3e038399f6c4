package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
)

const head = "apiVersion: " + APIVersion + "\nkind: Config\n"

func mustParse(t *testing.T, body string) *Config {
	t.Helper()
	c, err := Parse("t.yaml", []byte(head+body), Flags{NodeID: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// With no file at all, tandemd starts on one node.
func TestDefaultsStartALoneNode(t *testing.T) {
	c, err := Load("", Flags{})
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	host = strings.ToLower(host)
	want := map[string]any{
		"nodeID": host, "role": RoleNode, "insecure": true, "bootstrap": true, "api": "/run/tandem/tandemd.sock",
		"pools":   []Pool{{Path: "/var/lib/tandem/pool"}},
		"members": []RaftMember{{ID: host, RaftAddr: "127.0.0.1:9702", PeerAddr: "127.0.0.1:9701"}},
	}
	got := map[string]any{
		"nodeID": c.NodeID, "role": c.Role, "insecure": c.TLS.Insecure, "bootstrap": c.KVDB.Raft.Bootstrap, "api": c.API.Socket,
		"pools": c.Pools, "members": c.KVDB.Raft.Members,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if c.Replication.BeatInterval != 500*time.Millisecond || c.Replication.SuspectTimeout != 3*time.Second || c.Replication.MaxInflight != 256 {
		t.Errorf("timers are %+v", c.Replication)
	}
}

// A file that says nothing of it changes none of that.
func TestAnEmptyFileStartsALoneNode(t *testing.T) {
	got, err := Parse("t.yaml", []byte(head), Flags{NodeID: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := Load("", Flags{NodeID: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got.Effective(), want.Effective())
	}
}

func TestOrderDefaultsFileFlags(t *testing.T) {
	body := head + "nodeID: from-file\ndomain: from-file\nlog: {level: warn}\n"
	c, err := Parse("t.yaml", []byte(body), Flags{NodeID: "from-flag"})
	if err != nil {
		t.Fatal(err)
	}
	if c.NodeID != "from-flag" || c.Domain != "from-file" || c.ClusterName != "tandem" || c.Log.Level != "warn" {
		t.Errorf("got %q %q %q %q", c.NodeID, c.Domain, c.ClusterName, c.Log.Level)
	}
}

const threeMembers = `
kvdb:
  raft:
    listen: 10.0.0.1:9702
    members:
      - {id: n1, raftAddr: "10.0.0.1:9702", peerAddr: "10.0.0.1:9701"}
      - {id: n2, raftAddr: "10.0.0.2:9702", peerAddr: "10.0.0.2:9701"}
      - {id: w, raftAddr: "10.0.0.3:9702", peerAddr: "10.0.0.3:9701"}
`

const fullTLS = "tls: {ca: /etc/t/ca.pem, cert: /etc/t/n.pem, key: /etc/t/n.key}\n"

// What is right for a lone node must not stay on by itself in a cluster.
func TestLoneNodeDefaultsEndInACluster(t *testing.T) {
	c := mustParse(t, "peer: {listen: 10.0.0.1:9701}\n"+fullTLS+threeMembers)
	if c.TLS.Insecure || c.KVDB.Raft.Bootstrap {
		t.Errorf("insecure %v, bootstrap %v, want neither", c.TLS.Insecure, c.KVDB.Raft.Bootstrap)
	}
	c = mustParse(t, "peer: {listen: 10.0.0.1:9701}\n"+fullTLS+strings.Replace(threeMembers, "raft:\n", "raft:\n    bootstrap: true\n", 1))
	if !c.KVDB.Raft.Bootstrap {
		t.Error("bootstrap was written and is off")
	}
}

func TestWitness(t *testing.T) {
	c := mustParse(t, "role: witness\npeer: {listen: 10.0.0.1:9701}\n"+fullTLS+threeMembers)
	if len(c.Pools) != 0 {
		t.Errorf("a witness has pools %v", c.Pools)
	}
}

func TestEtcd(t *testing.T) {
	// The embedded store does not run then: its address does not matter.
	c := mustParse(t, "kvdb: {raft: {listen: \"10.0.0.1:9702\"}, kind: etcd, etcd: {endpoints: [\"https://e1:2379\", \"https://e2:2379\"], tls: {ca: /ca.pem}}}\n")
	if len(c.KVDB.Etcd.Endpoints) != 2 || len(c.KVDB.Raft.Members) != 0 {
		t.Errorf("got %+v", c.KVDB)
	}
}

// Each mistake gives one error that names the key and, when it is in the file, the line.
func TestFailoverProfiles(t *testing.T) {
	for text, want := range map[string]Failover{
		"":                                  {Enabled: true, Profile: ProfileDefault, Confirm: 15 * time.Second, NodeTTL: 10 * time.Second},
		"failover: {profile: aggressive}\n": {Enabled: true, Profile: ProfileAggressive, Confirm: 3 * time.Second, NodeTTL: 5 * time.Second},
		"failover: {profile: aggressive, confirm: 7s}\n":    {Enabled: true, Profile: ProfileAggressive, Confirm: 7 * time.Second, NodeTTL: 5 * time.Second},
		"failover: {enabled: false, profile: aggressive}\n": {Profile: ProfileAggressive, Confirm: 3 * time.Second, NodeTTL: 5 * time.Second},
	} {
		want.QuorumLoss, want.MinInterval = 100, 10*time.Minute
		if got := mustParse(t, text).Failover; got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct{ name, body, want string }{
		{"unknown key", "domian: x\n", `t.yaml:3: domian: unknown key: did you mean "domain"?`},
		{"unknown key below", "peer:\n  address: x\n", "t.yaml:4: peer.address: unknown key, known here: listen, advertise"},
		{"unknown key in a list", "pools:\n  - path: /p\n    fs: xfs\n", "t.yaml:5: pools[0].fs: unknown key, known here: path, allowAnyFS"},
		{"case", "Domain: x\n", `Domain: unknown key: did you mean "domain"?`},
		{"twice", "domain: a\ndomain: b\n", "t.yaml:4: domain: is there twice"},
		{"not yaml", "domain: [\n", "not YAML"},
		{"two documents", "---\ndomain: a\n", "more than one YAML document"},
		{"alias", "domain: &a x\n", "anchors and aliases are not supported"},
		{"tag", "domain: !!str x\n", "tags are not supported"},
		{"merge", "<<: {domain: x}\n", "<<: unknown key"},
		{"mapping for text", "domain: {a: b}\n", "t.yaml:3: domain: is a mapping, want text"},
		{"list for mapping", "peer: [a]\n", "peer: is a list, want keys and values"},
		{"text for list", "pools: /p\n", "pools: is a plain value, want a list"},
		{"bare duration", "replication: {beatInterval: 500}\n", `replication.beatInterval: "500" is not a duration: write a number and a unit`},
		{"bare size", "replication: {resyncRate: 8}\n", `replication.resyncRate: not a size: "8" has no unit: write 8B, 8Mi or 8Gi`},
		{"decimal size", "replication: {resyncRate: 8M}\n", `unknown unit "M", use one of B, Ki, Mi, Gi, Ti, Pi`},
		{"negative size", "replication: {resyncRate: -8Mi}\n", `"-8Mi": write a whole number and a unit`},
		{"huge size", "replication: {resyncRate: 9223372036854775807Pi}\n", "is more than 8 EiB"},
		{"text for a number", "replication: {maxInflight: many}\n", `"many" is not a whole number`},
		{"huge number", "replication: {maxInflight: 99999999999999999999}\n", "is not a whole number"},
		{"text for a bool", "tls: {insecure: yes}\n", `tls.insecure: "yes" is not true or false`},
		{"quoted number", "replication: {maxInflight: \"5\"}\n", `"5" is not a whole number`},
		{"hexadecimal", "replication: {maxInflight: 0x10}\n", `"0x10" is not a whole number`},
		{"number for a bool", "tls: {insecure: 1}\n", `tls.insecure: "1" is not true or false`},
		{"long list", "kvdb: {etcd: {endpoints: [" + strings.Repeat("a,", maxListLen+1) + "]}}\n", "has 1025 elements, at most 1024 are allowed"},
		{"large file", "#" + strings.Repeat("x", maxFile) + "\n", "the file is larger than 1Mi"},
		{"limit", "replication:\n  beatInterval: 1ms\n", "t.yaml:4: replication.beatInterval: 1ms is outside 50ms to 5s"},
		{"negative duration", "replication: {sealTimeout: -1s}\n", "-1s is outside"},
		{"suspect below 4 beats", "replication:\n  beatInterval: 1s\n", "replication.suspectTimeout: 3s is less than 4 x replication.beatInterval (4s)"},
		{"no such profile", "failover: {profile: bold}\n", "failover.profile: \"bold\" is not known here: use default or aggressive"},
		{"confirm below suspect", "failover: {confirm: 2s}\n", "failover.confirm: 2s is less than replication.suspectTimeout (3s)"},
		{"nodeTTL below suspect", "replication: {suspectTimeout: 10s}\nfailover: {profile: aggressive, confirm: 10s}\n", "failover.nodeTTL: 5s is less than replication.suspectTimeout (10s)"},
		{"interval below one failover", "failover: {minInterval: 20s}\n", "failover.minInterval: 20s is less than failover.nodeTTL + failover.confirm (25s)"},
		{"quorum loss", "failover: {quorumLoss: 0}\n", "failover.quorumLoss: 0 is outside 1 to 100"},
		{"op below suspect", "replication: {opTimeout: 2s}\n", "replication.opTimeout: 2s is less than replication.suspectTimeout (3s)"},
		{"slow is usual", "replication: {evictSlow: 19ms}\n", "replication.evictSlow: 19ms is less than the least but 0, which evicts none (20ms)"},
		{"slow is not at all", "replication: {suspectTimeout: 1s, opTimeout: 1s, evictSlow: 1s}\n", "replication.evictSlow: 1s is not less than replication.opTimeout (1s)"},
		{"stall too short", "replication: {stallTimeout: 12s}\n", "replication.stallTimeout: 12s is less than replication.opTimeout + replication.sealTimeout (15s)"},
		{"lease kept too short", "replication: {leaseTime: 2980ms}\n", "replication.leaseGrant: 3s is less than replication.leaseTime + 1 %"},
		{"seal below lease", "replication: {leaseGrant: 6s}\n", "replication.sealTimeout: 5s is less than replication.leaseGrant (6s)"},
		{"role", "role: arbiter\n", `role: "arbiter" is not known here: use node or witness`},
		{"domain name", "domain: a_\n", `domain: "a_" is not a name`},
		{"capitals", "nodeID: Node1\n", `nodeID: "Node1" is not a name: use 1 to 63 of a-z`},
		{"node name", "nodeID: a/b\n", `nodeID: "a/b" is not a name`},
		{"relative", "dataDir: data\n", `dataDir: "data" is not an absolute path`},
		{"same pools", "pools: [{path: /p}, {path: /p/}]\n", "pools[1].path: is the same as pools[0].path"},
		{"nested pools", "pools: [{path: /p}, {path: /p/q}]\n", "pools[1].path: one of it and pools[0].path lies within the other"},
		{"witness with pools", "role: witness\npools: [{path: /p}]\n", "pools: a witness holds no data"},
		{"witness with etcd", "role: witness\nkvdb: {kind: etcd, etcd: {endpoints: [http://e:1]}}\n", "role: a witness is a member of the embedded kvdb"},
		{"socket too long", "runDir: /" + strings.Repeat("r", 120) + "\n", "a unix socket's path has at most 107"},
		{"relative runDir", "runDir: run\n", `runDir: "run" is not an absolute path`},
		{"relative fuse dir", "frontends: {fuseloop: {dir: fuse}}\n", `frontends.fuseloop.dir: "fuse" is not an absolute path`},
		{"relative socket", "api: {socket: a.sock}\n", `api.socket: "a.sock" is not an absolute path`},
		{"relative pool", "pools: [{path: p}]\n", `pools[0].path: "p" is not an absolute path`},
		{"pool without path", "pools: [{}]\n", `pools[0].path: "" is not an absolute path`},
		{"relative cert", "tls: {ca: /ca, cert: c, key: /k}\n", `tls.cert: "c" is not an absolute path`},
		{"endpoint with path", "kvdb: {kind: etcd, etcd: {endpoints: [http://e:1/x]}}\n", `"http://e:1/x" has something behind the port`},
		{"relative password file", "kvdb: {kind: etcd, etcd: {endpoints: [http://e:1], username: u, passwordFile: p}}\n", `kvdb.etcd.passwordFile: "p" is not an absolute path`},
		{"half of etcd's tls", "kvdb: {kind: etcd, etcd: {endpoints: [https://e:1], tls: {cert: /c}}}\n", "kvdb.etcd.tls.cert: and kvdb.etcd.tls.key must be set together"},
		{"relative etcd ca", "kvdb: {kind: etcd, etcd: {endpoints: [https://e:1], tls: {ca: ca}}}\n", `kvdb.etcd.tls.ca: "ca" is not an absolute path`},
		{"witness that is no member", "role: witness\nkvdb: {raft: {member: false, members: [{id: n2, raftAddr: \"b:1\", peerAddr: \"b:2\"}]}}\n", "kvdb.raft.member: must be true on a witness"},
		{"member's name", "kvdb: {raft: {members: [{id: \"\", raftAddr: \"b:1\", peerAddr: \"b:2\"}]}}\n", `kvdb.raft.members[0].id: "" is not a node's name`},
		{"member's wildcard", "kvdb: {raft: {members: [{id: n1, raftAddr: \":1\", peerAddr: \"b:2\"}]}}\n", `kvdb.raft.members[0].raftAddr: ":1" names no single address`},
		{"members' same address", "kvdb: {raft: {members: [{id: n1, raftAddr: \"b:1\", peerAddr: \"b:1\"}]}}\n", `kvdb.raft.members[0].peerAddr: "b:1" is used by kvdb.raft.members[0] already`},
		{"relative CSI socket", "csi: {socket: a.sock}\n", `csi.socket: "a.sock" is not an absolute path`},
		{"same CSI socket", "api: {socket: /a}\ncsi: {socket: /a}\n", "csi.socket: is the same as another socket"},
		{"relative registration", "csi: {socket: /a, registrationSocket: b}\n", `csi.registrationSocket: "b" is not an absolute path`},
		{"registration of nothing", "csi: {registrationSocket: /b}\n", "csi.registrationSocket: is set, and csi.socket is not"},
		{"registration on the CSI socket", "csi: {socket: /a, registrationSocket: /a}\n", "csi.registrationSocket: is the same as another socket"},
		{"CSI at a witness", "role: witness\ncsi: {socket: /a}\n", "csi.socket: a witness attaches nothing"},
		{"same sockets", "api: {socket: /a}\nfrontends: {nbd: {socket: /a}}\n", "frontends.nbd.socket: is the same as api.socket"},
		{"no port", "peer: {listen: 127.0.0.1}\n", `peer.listen: "127.0.0.1" is not an address`},
		{"port 0", "peer: {listen: \"127.0.0.1:0\"}\n", "has no port between 1 and 65535"},
		{"same port", "api: {listen: \"127.0.0.1:9701\"}\n", "api.listen: is the same address as peer.listen"},
		{"insecure in the open", "peer: {listen: 10.0.0.1:9701}\n", `t.yaml:3: peer.listen: "10.0.0.1:9701" can be reached from other machines, and there is no TLS`},
		{"insecure nbd", "frontends: {nbd: {listen: \":10809\"}}\n", `frontends.nbd.listen: ":10809" can be reached from other machines`},
		{"wildcard", "peer: {listen: \":9701\"}\n" + fullTLS, "peer.advertise: must be set"},
		{"wildcard advertised", "peer: {listen: \":9701\", advertise: \"0.0.0.0:9701\"}\n" + fullTLS, `peer.advertise: "0.0.0.0:9701" names no single address`},
		{"insecure and files", "tls: {insecure: true, ca: /ca}\n", "tls.insecure: is true, and tls.ca is set: choose one"},
		{"half of tls", "tls: {ca: /ca}\n", "tls.cert: must be set"},
		{"secure without files", "tls: {insecure: false}\n", "tls.ca: must be set"},
		{"kvdb kind", "kvdb: {kind: consul}\n", `kvdb.kind: "consul" is not known here: use raft or etcd`},
		{"no endpoints", "kvdb: {kind: etcd}\n", "kvdb.etcd.endpoints: is empty"},
		{"endpoint", "kvdb: {kind: etcd, etcd: {endpoints: [e1:2379]}}\n", "kvdb.etcd.endpoints[0]: is not a URL"},
		{"password in URL", "kvdb: {kind: etcd, etcd: {endpoints: [\"http://u:sesame@e:1\"]}}\n", "holds a user name or a password"},
		{"user alone", "kvdb: {kind: etcd, etcd: {endpoints: [http://e:1], username: u}}\n", "kvdb.etcd.passwordFile must be set together"},
		{"tls to http", "kvdb: {kind: etcd, etcd: {endpoints: [http://e:1], tls: {ca: /ca}}}\n", "no endpoint begins with https://"},
		{"two members", "kvdb: {raft: {members: [{id: n1, raftAddr: \"a:1\", peerAddr: \"a:2\"}, {id: n2, raftAddr: \"b:1\", peerAddr: \"b:2\"}]}}\n", "has two members"},
		{"not listed", "kvdb: {raft: {members: [{id: n2, raftAddr: \"b:1\", peerAddr: \"b:2\"}]}}\n", `does not list this node ("n1")`},
		{"client listed", "kvdb: {raft: {member: false, members: [{id: n1, raftAddr: \"b:1\", peerAddr: \"b:2\"}]}}\n", `lists this node ("n1")`},
		{"client of none", "kvdb: {raft: {member: false}}\n", "kvdb.raft.members: is empty, and this node is no member"},
		{"client founds", "kvdb: {raft: {member: false, bootstrap: true}}\n", "only a member can found the store"},
		{"same member", "kvdb: {raft: {members: [{id: n1, raftAddr: \"a:1\", peerAddr: \"a:2\"}, {id: n1, raftAddr: \"a:1\", peerAddr: \"b:2\"}, {id: n3, raftAddr: \"c:1\", peerAddr: \"c:2\"}]}}\n", `kvdb.raft.members[1].id: "n1" is kvdb.raft.members[0] already`},
		{"list for labels", "labels: [rack]\n", "labels: is a list, want keys and values"},
		{"label twice", "labels: {rack: r1, rack: r2}\n", "labels.rack: is there twice"},
		{"label of many", "labels: {rack: [r1]}\n", "labels.rack: is a list, want text"},
		{"key that is no text", "labels: {[a]: r1}\n", "labels: has a list for a key, want text"},
		{"long label", "labels: {rack: " + strings.Repeat("x", maxLabel+1) + "}\n", `label "rack": want a key of 1 to 255 bytes`},
		{"label without a key", "labels: {\"\": r1}\n", `label "": want a key`},
		{"long class", "pools: [{path: /p, class: " + strings.Repeat("x", maxLabel+1) + "}]\n", "pools[0].class: has 256 bytes, at most 255"},
		{"frontend", "frontends: {default: iscsi}\n", `frontends.default: "iscsi" is not known here: use fuseloop or device or nbd`},
		{"level", "log: {level: loud}\n", `log.level: "loud" is not known here`},
		{"fatal level", "log: {level: fatal}\n", `log.level: "fatal" is not known here`},
		{"format", "log: {format: xml}\n", `log.format: "xml" is not known here`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("t.yaml", []byte(head+tc.body), Flags{NodeID: orFile(tc.body, "n1")})
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %v", err, tc.want)
			}
			if strings.Contains(err.Error(), "sesame") {
				t.Error("the password is in the error")
			}
		})
	}
}

// orFile returns def unless the body sets nodeID itself.
func orFile(body, def string) string {
	if strings.Contains(body, "nodeID:") {
		return ""
	}
	return def
}

func TestHeadIsRequired(t *testing.T) {
	for body, want := range map[string]string{
		"":                               "the file is empty",
		"# nothing\n":                    "the file is empty",
		"domain: x\n":                    "apiVersion: is missing",
		"apiVersion: v0\nkind: Config\n": `apiVersion: "v0" is not known here`,
		"apiVersion: " + APIVersion:      "kind: is missing",
		"apiVersion: " + APIVersion + "\nkind: Cluster\n": `kind: "Cluster" is not known here`,
		"just text": "is a plain value, want keys and values",
		"- a\n":     "is a list, want keys and values",
	} {
		_, err := Parse("t.yaml", []byte(body), Flags{NodeID: "n1"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", body, err, want)
		}
	}
	if _, err := Parse("t.yaml", nil, Flags{}); err == nil {
		t.Error("nil data were taken for no file")
	}
}

// TestLabels: what YAML takes for a number is text, and none is none.
func TestLabels(t *testing.T) {
	c := mustParse(t, "labels: {rack: 7, disk: nvme}\npools: [{path: /p, class: fast}]\n")
	if len(c.Labels) != 2 || c.Labels["rack"] != "7" || c.Labels["disk"] != "nvme" || c.Pools[0].Class != "fast" {
		t.Errorf("%v, %+v", c.Labels, c.Pools)
	}
	if got := c.Effective()["labels"]; got != "{disk: nvme, rack: 7}" {
		t.Errorf("they are told as %s", got)
	}
	if c = mustParse(t, "labels: {}\n"); c.Labels != nil {
		t.Errorf("%v", c.Labels)
	}
	many := "labels: {"
	for i := range maxLabels + 1 {
		many += fmt.Sprintf("l%d: x, ", i)
	}
	if _, err := Parse("t.yaml", []byte(head+many+"}\n"), Flags{NodeID: "n1"}); err == nil || !strings.Contains(err.Error(), "has 65 labels, at most 64") {
		t.Error(err)
	}
}

// The ends of every range belong to it.
func TestEdges(t *testing.T) {
	mustParse(t, "#"+strings.Repeat("x", maxFile-len(head)-1))
	mustParse(t, "kvdb: {etcd: {endpoints: ["+strings.Repeat("a,", maxListLen)+"]}}\n")
	longest := "/" + strings.Repeat("s", maxSocketPath-1)
	mustParse(t, "api: {socket: "+longest+"}\n")
	mustParse(t, "replication: {beatInterval: 750ms, suspectTimeout: 3s, opTimeout: 3s, sealTimeout: 2s, leaseTime: 1980ms, leaseGrant: 2s, stallTimeout: 5s}\n")
	for _, l := range Limits() {
		for _, v := range []int64{l.Min, l.Max} {
			k, c := &checker{}, Default()
			l.field.set(c, v)
			if k.limits(c); len(k.errs) > 0 {
				t.Errorf("%v", k.errs)
			}
			l.field.set(c, v-l.Min+l.Max+1)
			if k.limits(c); len(k.errs) != 1 {
				t.Errorf("%s = %s is accepted", l.Key, l.Text(v-l.Min+l.Max+1))
			}
		}
	}
}

// A name that the configuration takes can stand in a certificate.
func TestNamesFitCertificates(t *testing.T) {
	for _, name := range []string{"a", "dr-site", "n_1.x", strings.Repeat("a", 63), strings.Repeat("a", 64), "", "A", ".a", "a/b", "ä", "a b"} {
		id := transport.Identity{Cluster: name, Domain: replication.DomainID(name), Node: replication.NodeID(name)}
		if nameRE.MatchString(name) && id.Check() != nil {
			t.Errorf("%q: %v", name, id.Check())
		}
		if !nameRE.MatchString(name) && id.Check() == nil {
			t.Errorf("%q could be a name and is refused", name)
		}
	}
}

// All mistakes are reported at once, in one error.
func TestAllErrorsAtOnce(t *testing.T) {
	_, err := Parse("t.yaml", []byte(head+"role: x\ndomain: a_\nreplication: {beatInterval: 1ms, maxInflight: 0}\nlog: {level: z}\n"), Flags{NodeID: "n1"})
	var errs Errors
	if !errors.As(err, &errs) {
		t.Fatalf("got %T: %v", err, err)
	}
	var keys []string
	for _, e := range errs {
		if e.Line == 0 {
			t.Errorf("%s has no line", e.Key)
		}
		keys = append(keys, e.Key)
	}
	slices.Sort(keys)
	want := []string{"domain", "log.level", "replication.beatInterval", "replication.maxInflight", "role"}
	if !slices.Equal(keys, want) {
		t.Errorf("got %v, want %v", keys, want)
	}
	_, err = Parse("t.yaml", []byte(head+"a: 1\nb: 2\nlog: {c: 3}\n"), Flags{})
	if !errors.As(err, &errs) || len(errs) != 3 {
		t.Errorf("got %v, want 3 unknown keys", err)
	}
}

func TestLoadMissingFile(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "no.yaml"), Flags{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

func TestEffectiveHasNoSecrets(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "password")
	if err := os.WriteFile(file, []byte("sesame\nsecond line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := mustParse(t, "kvdb: {kind: etcd, etcd: {endpoints: [http://e:1], username: u, passwordFile: "+file+"}}\n")
	pw, err := c.KVDB.Etcd.Password()
	if err != nil || pw != "sesame" {
		t.Fatalf("got %q, %v", pw, err)
	}
	eff := c.Effective()
	for k, v := range eff {
		if strings.Contains(v, "sesame") {
			t.Errorf("%s = %s", k, v)
		}
	}
	if eff["kvdb.etcd.passwordFile"] != file || eff["replication.stallTimeout"] != "1m30s" || eff["replication.maxInflight"] != "256" || eff["pools[0].path"] != "/var/lib/tandem/pool" {
		t.Errorf("got %v", eff)
	}
	if err := os.Chmod(file, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KVDB.Etcd.Password(); !errors.Is(err, ErrInvalid) {
		t.Errorf("a file that everybody can read: got %v", err)
	}
	if err := os.WriteFile(file, []byte("\nx"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KVDB.Etcd.Password(); !errors.Is(err, ErrInvalid) {
		t.Errorf("an empty first line: got %v", err)
	}
}

// Every number of Config has a row in the table, and every default is within its range.
func TestLimitsCoverEveryNumber(t *testing.T) {
	numbers := map[string]bool{}
	flatten("", reflect.ValueOf(Default()).Elem(), func(key string, v reflect.Value) {
		if v.CanInt() {
			numbers[key] = true
		}
	})
	c := Default()
	for _, l := range Limits() {
		if !numbers[l.Key] {
			t.Errorf("%s is no number of Config, or is there twice", l.Key)
		}
		delete(numbers, l.Key)
		if l.Min > l.Default || l.Default > l.Max || l.Why == "" {
			t.Errorf("%s: bad row %+v", l.Key, l)
		}
		l.field.set(c, l.Max)
		if got := c.Effective()[l.Key]; got != l.Text(l.Max) {
			t.Errorf("%s points at another field: set %s, reads %s", l.Key, l.Text(l.Max), got)
		}
	}
	if len(numbers) > 0 {
		t.Errorf("no limits for %v", numbers)
	}
}

func TestSize(t *testing.T) {
	for s, want := range map[string]Size{
		"0": 0, "0B": 0, "512B": 512, "64Ki": 64 << 10, "8Mi": 8 << 20, "8MiB": 8 << 20, "2GiB": 2 << 30, "1Ti": 1 << 40, "7Pi": 7 << 50,
		"9223372036854775807B": 1<<63 - 1,
	} {
		got, err := ParseSize(s)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
		if back, err := ParseSize(got.String()); err != nil || back != want {
			t.Errorf("%d is written as %q, which is %d, %v", want, got, back, err)
		}
	}
	for _, s := range []string{"", "-1", "1", "10X", "10G", "10GB", "1.5Gi", "Gi", " 1Gi", "1 Gi", "+1Gi", "1BB", "0x10Mi", "8388608Ti", "１Gi"} {
		if got, err := ParseSize(s); !errors.Is(err, ErrBadSize) {
			t.Errorf("ParseSize(%q) = %d, %v, want ErrBadSize", s, got, err)
		}
	}
}

// Whatever the file holds: no panic, an error that says ErrInvalid, or a configuration
// that is valid and says the same when written out.
func FuzzParse(f *testing.F) {
	sample, err := os.ReadFile(samplePath)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	f.Add([]byte(head + fullTLS + "peer: {listen: 10.0.0.1:9701}\n" + threeMembers))
	f.Add([]byte(head + "a: &a [*a, *a]\n<<: *a\n"))
	f.Add([]byte(head + "pools: [{path: /a}, null, {}]\nreplication: {beatInterval: 1h, resyncRate: 1Pi}\n"))
	f.Add([]byte("\xff\xfe\x00k"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f.yaml", data, Flags{NodeID: "n1"})
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("accepted, and not valid: %v", err)
		}
		if c.TLS.Insecure {
			for _, l := range c.listeners() {
				if !isLoopback(l.value) {
					t.Fatalf("%s listens on %s without TLS", l.key, l.value)
				}
			}
		}
	})
}

// TestFlagsOfManyNodes: one file is good for members of the kvdb and for the others.
func TestFlagsOfManyNodes(t *testing.T) {
	const body = head + `
peer: {listen: ":9701"}
tls: {ca: /ca, cert: /c, key: /k}
kvdb:
  raft:
    listen: ":9702"
    bootstrap: true
    members: [{id: n1, raftAddr: "10.0.0.1:9702", peerAddr: "10.0.0.1:9701"}]
`
	for _, tc := range []struct {
		flags     Flags
		member    bool
		advertise string
	}{
		{Flags{NodeID: "n1", AdvertiseHost: "10.0.0.1", MemberIfListed: true}, true, "10.0.0.1:9701"},
		{Flags{NodeID: "n2", AdvertiseHost: "fd00::2", MemberIfListed: true}, false, "[fd00::2]:9701"},
	} {
		c, err := Parse("t.yaml", []byte(body), tc.flags)
		if err != nil {
			t.Fatal(err)
		}
		if r := c.KVDB.Raft; r.Member != tc.member || r.Bootstrap != tc.member || len(r.Members) != 1 || c.Peer.Advertise != tc.advertise {
			t.Errorf("%s: %+v, advertises %s", c.NodeID, r, c.Peer.Advertise)
		}
	}
	// Without the flag a node that is not listed is a mistake, and so is an address without a port.
	if _, err := Parse("t.yaml", []byte(body), Flags{NodeID: "n2", AdvertiseHost: "10.0.0.2"}); err == nil || !strings.Contains(err.Error(), `does not list this node ("n2")`) {
		t.Errorf("got %v", err)
	}
	if _, err := Parse("t.yaml", []byte(head+"peer: {listen: somewhere}\n"), Flags{NodeID: "n1", AdvertiseHost: "10.0.0.1"}); err == nil || !strings.Contains(err.Error(), "--advertise-host") {
		t.Errorf("got %v", err)
	}
	// A node that is told nothing of others is a member of its own store.
	if c, err := Parse("t.yaml", []byte(head), Flags{NodeID: "n1", MemberIfListed: true}); err != nil || !c.KVDB.Raft.Member || !c.KVDB.Raft.Bootstrap {
		t.Errorf("%+v, %v", c, err)
	}
}

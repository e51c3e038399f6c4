package config

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"
)

// nameRE is the syntax of names: they go into certificates (transport.Identity),
// kvdb keys and file names.
var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// maxSocketPath is what fits into a sockaddr_un, without the final zero.
const maxSocketPath = 107

// checker collects errors.
type checker struct{ errs Errors }

func (k *checker) fail(key, format string, args ...any) {
	k.errs = append(k.errs, &Error{Key: key, Msg: fmt.Sprintf(format, args...)})
}

// Validate checks a complete configuration and reports everything that is wrong,
// as Errors. It reads no file and opens no socket.
func (c *Config) Validate() error {
	k := &checker{}
	k.names(c)
	k.paths(c)
	k.labels(c)
	k.addresses(c)
	k.tls(c)
	k.kvdb(c)
	k.oneOf("frontends.default", string(c.Frontends.Default), string(FrontendFuseLoop), string(FrontendDevice), string(FrontendNBD))
	k.limits(c)
	k.timers(c)
	k.log(c)
	if len(k.errs) > 0 {
		return k.errs
	}
	return nil
}

func (k *checker) names(c *Config) {
	k.oneOf("apiVersion", c.APIVersion, APIVersion)
	k.oneOf("kind", c.Kind, Kind)
	k.oneOf("role", string(c.Role), string(RoleNode), string(RoleWitness))
	for _, n := range []keyed{{"clusterName", c.ClusterName}, {"nodeID", c.NodeID}, {"domain", c.Domain}} {
		if !nameRE.MatchString(n.value) {
			k.fail(n.key, "%q is not a name: use 1 to 63 of a-z, 0-9, '-', '.' and '_', beginning and ending with a letter or a digit", n.value)
		}
	}
}

func (k *checker) paths(c *Config) {
	k.absolute("dataDir", c.DataDir)
	k.absolute("runDir", c.RunDir)
	k.absolute("frontends.fuseloop.dir", c.Frontends.FuseLoop.Dir)
	k.absolute("frontends.device.dir", c.Frontends.Device.Dir)
	if c.Frontends.Device.Dir == c.Frontends.FuseLoop.Dir {
		k.fail("frontends.device.dir", "is the same as frontends.fuseloop.dir: each process needs its own")
	}
	sockets := []keyed{{"api.socket", c.API.Socket}, {"frontends.nbd.socket", c.Frontends.NBD.Socket}, {"frontends.device.socket", c.Frontends.Device.Socket}}
	if s := c.CSI.Socket; s != "" {
		sockets = append(sockets, keyed{"csi.socket", s})
		if s == c.API.Socket || s == c.Frontends.NBD.Socket {
			k.fail("csi.socket", "is the same as another socket: each needs its own")
		}
		if c.Role == RoleWitness {
			k.fail("csi.socket", "a witness attaches nothing: remove it, or set role: node")
		}
	}
	if s := c.CSI.RegistrationSocket; s != "" {
		sockets = append(sockets, keyed{"csi.registrationSocket", s})
		switch s {
		case c.API.Socket, c.Frontends.NBD.Socket, c.CSI.Socket:
			k.fail("csi.registrationSocket", "is the same as another socket: each needs its own")
		}
		if c.CSI.Socket == "" {
			k.fail("csi.registrationSocket", "is set, and csi.socket is not: there is no driver to register")
		}
	}
	for _, s := range sockets {
		k.absolute(s.key, s.value)
		if len(s.value) > maxSocketPath {
			k.fail(s.key, "%q is %d bytes long, a unix socket's path has at most %d: choose a shorter runDir", s.value, len(s.value), maxSocketPath)
		}
	}
	if c.API.Socket == c.Frontends.NBD.Socket {
		k.fail("frontends.nbd.socket", "is the same as api.socket: each needs its own")
	}
	if c.Role == RoleWitness && len(c.Pools) > 0 {
		k.fail("pools", "a witness holds no data: remove the pools, or set role: node")
	}
	for i, p := range c.Pools {
		key := fmt.Sprintf("pools[%d].path", i)
		k.absolute(key, p.Path)
		for j, q := range c.Pools[:i] {
			switch a, b := filepath.Clean(p.Path), filepath.Clean(q.Path); {
			case a == b:
				k.fail(key, "is the same as pools[%d].path", j)
			case strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/"):
				k.fail(key, "one of it and pools[%d].path lies within the other", j)
			}
		}
	}
}

// Bounds of what a node tells the others of itself with every registration.
const (
	maxLabels = 64
	maxLabel  = 255 // bytes, of a key, a value or a class
)

// labels checks what volumes choose the places of their replicas by.
func (k *checker) labels(c *Config) {
	if len(c.Labels) > maxLabels {
		k.fail("labels", "has %d labels, at most %d are allowed", len(c.Labels), maxLabels)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		if name == "" || len(name) > maxLabel || len(c.Labels[name]) > maxLabel {
			k.fail("labels", "label %.32q: want a key of 1 to %d bytes and a value of at most that", name, maxLabel)
		}
	}
	for i, p := range c.Pools {
		if len(p.Class) > maxLabel {
			k.fail(fmt.Sprintf("pools[%d].class", i), "has %d bytes, at most %d are allowed", len(p.Class), maxLabel)
		}
	}
}

func (k *checker) absolute(key, path string) {
	if !filepath.IsAbs(path) {
		k.fail(key, "%q is not an absolute path", path)
	}
}

func (k *checker) addresses(c *Config) {
	ls := c.listeners()
	for i, l := range ls {
		if !k.address(l.key, l.value) {
			continue
		}
		for _, m := range ls[:i] {
			if l.value == m.value {
				k.fail(l.key, "is the same address as %s: each needs its own port", m.key)
			}
		}
	}
	switch {
	case c.Peer.Advertise == c.Peer.Listen && isWildcard(c.Peer.Listen):
		k.fail("peer.advertise", "must be set: peer.listen %q names no single address that other nodes could dial", c.Peer.Listen)
	case c.Peer.Advertise != c.Peer.Listen && k.address("peer.advertise", c.Peer.Advertise) && isWildcard(c.Peer.Advertise):
		k.fail("peer.advertise", "%q names no single address that other nodes could dial", c.Peer.Advertise)
	}
}

// address checks host:port.
func (k *checker) address(key, addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		k.fail(key, "%q is not an address: write host:port, as in 10.0.0.1:9701 or [fd00::1]:9701", addr)
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		k.fail(key, "%q has no port between 1 and 65535", addr)
		return false
	}
	return true
}

func (k *checker) tls(c *Config) {
	files := []keyed{{"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key}}
	if c.TLS.Insecure {
		for _, f := range files {
			if f.value != "" {
				k.fail("tls.insecure", "is true, and %s is set: choose one", f.key)
				break
			}
		}
		for _, l := range c.listeners() {
			if !isLoopback(l.value) {
				k.fail(l.key, "%q can be reached from other machines, and there is no TLS: set tls.ca, tls.cert and tls.key (\"tandemctl pki\" makes them), or listen on 127.0.0.1", l.value)
			}
		}
		return
	}
	for _, f := range files {
		if f.value == "" {
			k.fail(f.key, "must be set, with the other two of tls.ca, tls.cert and tls.key (or tls.insecure: true on loopback)")
		} else {
			k.absolute(f.key, f.value)
		}
	}
}

func (k *checker) kvdb(c *Config) {
	switch c.KVDB.Kind {
	case KVDBRaft:
		k.raft(c)
	case KVDBEtcd:
		k.etcd(c)
		if c.Role == RoleWitness {
			k.fail("role", "a witness is a member of the embedded kvdb: with kvdb.kind etcd, run an etcd member in the third place instead of tandemd")
		}
	default:
		k.oneOf("kvdb.kind", string(c.KVDB.Kind), string(KVDBRaft), string(KVDBEtcd))
	}
}

func (k *checker) etcd(c *Config) {
	e := &c.KVDB.Etcd
	if len(e.Endpoints) == 0 {
		k.fail("kvdb.etcd.endpoints", "is empty: name at least one etcd member, as in https://etcd-1:2379")
	}
	var https bool
	for i, ep := range e.Endpoints {
		key := fmt.Sprintf("kvdb.etcd.endpoints[%d]", i)
		u, err := url.Parse(ep)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			k.fail(key, "is not a URL like https://etcd-1:2379") // not quoted: it may hold a password
		case u.User != nil:
			k.fail(key, "holds a user name or a password: use kvdb.etcd.username and kvdb.etcd.passwordFile")
		case u.Path != "" || u.RawQuery != "" || u.Fragment != "":
			k.fail(key, "%q has something behind the port", ep)
		default:
			https = https || u.Scheme == "https"
		}
	}
	if (e.Username == "") != (e.PasswordFile == "") {
		k.fail("kvdb.etcd.username", "and kvdb.etcd.passwordFile must be set together")
	}
	if e.PasswordFile != "" {
		k.absolute("kvdb.etcd.passwordFile", e.PasswordFile)
	}
	if (e.TLS.Cert == "") != (e.TLS.Key == "") {
		k.fail("kvdb.etcd.tls.cert", "and kvdb.etcd.tls.key must be set together")
	}
	for _, f := range []keyed{{"kvdb.etcd.tls.ca", e.TLS.CA}, {"kvdb.etcd.tls.cert", e.TLS.Cert}, {"kvdb.etcd.tls.key", e.TLS.Key}} {
		if f.value == "" {
			continue
		}
		k.absolute(f.key, f.value)
		if !https {
			k.fail(f.key, "is set, and no endpoint begins with https://")
		}
	}
}

func (k *checker) raft(c *Config) {
	r := &c.KVDB.Raft
	if c.Role == RoleWitness && !r.Member {
		k.fail("kvdb.raft.member", "must be true on a witness: it has no other duty")
	}
	if r.Bootstrap && !r.Member {
		k.fail("kvdb.raft.bootstrap", "is true, and kvdb.raft.member is false: only a member can found the store")
	}
	switch len(r.Members) {
	case 0:
		k.fail("kvdb.raft.members", "is empty, and this node is no member: name the members to ask")
		return
	case 2:
		k.fail("kvdb.raft.members", "has two members: the loss of either would stop both; name one, or three (the third in a third place, see role: witness)")
	}
	ids, addrs := map[string]int{}, map[string]int{}
	for i, m := range r.Members {
		key := fmt.Sprintf("kvdb.raft.members[%d]", i)
		if !nameRE.MatchString(m.ID) {
			k.fail(key+".id", "%q is not a node's name", m.ID)
		} else if j, dup := ids[m.ID]; dup {
			k.fail(key+".id", "%q is kvdb.raft.members[%d] already", m.ID, j)
		}
		ids[m.ID] = i
		for _, a := range []keyed{{key + ".raftAddr", m.RaftAddr}, {key + ".peerAddr", m.PeerAddr}} {
			if !k.address(a.key, a.value) {
				continue
			}
			if isWildcard(a.value) {
				k.fail(a.key, "%q names no single address that other nodes could dial", a.value)
			} else if j, dup := addrs[a.value]; dup {
				k.fail(a.key, "%q is used by kvdb.raft.members[%d] already", a.value, j)
			}
			addrs[a.value] = i
		}
	}
	if _, listed := ids[c.NodeID]; listed != r.Member {
		if r.Member {
			k.fail("kvdb.raft.members", "does not list this node (%q), and kvdb.raft.member is true", c.NodeID)
		} else {
			k.fail("kvdb.raft.member", "is false, and kvdb.raft.members lists this node (%q)", c.NodeID)
		}
	}
}

func (k *checker) limits(c *Config) {
	for i := range limits {
		l := &limits[i]
		if v := l.field.get(c); v < l.Min || v > l.Max {
			k.fail(l.Key, "%s is outside %s to %s: %s", l.Text(v), l.Text(l.Min), l.Text(l.Max), l.Why)
		}
	}
}

// beatsToSuspect is how many beats must be missed before a peer is given up:
// one lost segment and its retransmission cost up to three.
const beatsToSuspect = 4

// clockError is by what part of leaseTime leaseGrant has to be longer: two clocks may differ, see core.ClockError.
const clockError = 99

// leastSlow is the least evictSlow that is not 0.
const leastSlow = 20 * time.Millisecond

// timers checks the relations of protocol.md 19.
func (k *checker) timers(c *Config) {
	r := &c.Replication
	atLeast := func(key string, v, least time.Duration, formula, why string) {
		if v < least {
			k.fail(key, "%s is less than %s (%s): %s", durationText(v), formula, durationText(least), why)
		}
	}
	atLeast("replication.suspectTimeout", r.SuspectTimeout, beatsToSuspect*r.BeatInterval, "4 x replication.beatInterval",
		"a peer would be given up for a few lost beats")
	atLeast("replication.opTimeout", r.OpTimeout, r.SuspectTimeout, "replication.suspectTimeout",
		"a dead peer would look like a slow disk")
	if r.EvictSlow > 0 {
		atLeast("replication.evictSlow", r.EvictSlow, leastSlow, "the least but 0, which evicts none",
			"good replicas take so long now and then, and each eviction costs a copy of the data for a minute or more")
		if r.EvictSlow >= r.OpTimeout {
			k.fail("replication.evictSlow", "%s is not less than replication.opTimeout (%s): a replica that slow is evicted for not answering at all",
				durationText(r.EvictSlow), durationText(r.OpTimeout))
		}
	}
	atLeast("replication.leaseGrant", r.LeaseGrant, r.LeaseTime+r.LeaseTime/clockError, "replication.leaseTime + 1 %",
		"clocks differ, and a coordinator would read after a replica has followed another one")
	k.oneOf("replication.readFence", string(r.ReadFence), string(FenceLease), string(FenceConfirm))
	atLeast("replication.sealTimeout", r.SealTimeout, r.LeaseGrant, "replication.leaseGrant",
		"a takeover would leave replicas out that wait for a lease to run out")
	atLeast("replication.stallTimeout", r.StallTimeout, r.OpTimeout+r.SealTimeout, "replication.opTimeout + replication.sealTimeout",
		"requests would fail before an eviction that saves them can end")
	f := &c.Failover
	k.oneOf("failover.profile", string(f.Profile), string(ProfileDefault), string(ProfileAggressive))
	atLeast("failover.confirm", f.Confirm, r.SuspectTimeout, "replication.suspectTimeout",
		"a coordinator that lives on must have time to evict the replicas here, so that it is known that they are not to be taken over from")
	atLeast("failover.nodeTTL", f.NodeTTL, r.SuspectTimeout, "replication.suspectTimeout",
		"a node would seem to be gone before its replicas are given up")
	atLeast("failover.minInterval", f.MinInterval, f.NodeTTL+f.Confirm, "failover.nodeTTL + failover.confirm",
		"one loss would be answered twice")
}

func (k *checker) log(c *Config) {
	k.oneOf("log.level", c.Log.Level, zapcore.DebugLevel.String(), zapcore.InfoLevel.String(), zapcore.WarnLevel.String(), zapcore.ErrorLevel.String())
	k.oneOf("log.format", string(c.Log.Format), string(LogJSON), string(LogConsole))
}

func (k *checker) oneOf(key, v string, allowed ...string) {
	if !slices.Contains(allowed, v) {
		k.fail(key, "%q is not known here: use %s", v, strings.Join(allowed, " or "))
	}
}

package clusterdomain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
)

// RTTWarning is the p99 round trip above which a peer is reported: synchronous
// replication adds it to every write.
const RTTWarning = 10 * time.Millisecond

// RTT is a digest of the round-trip times of beats to another node over the last minute.
type RTT struct {
	Node, Domain string
	P50, P99     time.Duration
	Samples      int
	LastSeen     time.Time // when the last beat was answered; zero: never
}

// High reports whether the round trip is too long for synchronous replication.
func (r RTT) High() bool { return r.Samples > 0 && r.P99 > RTTWarning }

// Severity of an Alert; a higher one is worse.
type Severity int

// Severities.
const (
	Notify Severity = iota + 1 // for information
	Warn                       // may heal
	Alarm                      // redundancy or service is lost
)

// AlertCode is the machine-readable kind of an Alert.
type AlertCode string

// Alert codes.
const (
	AlertDomainFenced     AlertCode = "domain-fenced"
	AlertDomainInactive   AlertCode = "domain-inactive"
	AlertDomainDraining   AlertCode = "domain-draining"
	AlertDomainRejoining  AlertCode = "domain-rejoining"
	AlertNodeOffline      AlertCode = "node-offline"
	AlertRTTHigh          AlertCode = "rtt-high"
	AlertVolumeNotInSync  AlertCode = "volume-not-in-sync"
	AlertVolumeLastCopy   AlertCode = "volume-last-copy"
	AlertVolumeUnreadable AlertCode = "volume-unreadable"
	AlertGroupSplit       AlertCode = "group-split" // a domain does not have all of a consistency group in sync
	AlertKvdbRollback     AlertCode = "kvdb-rollback"
	AlertRecordUnreadable AlertCode = "record-unreadable"
	AlertPoolNearlyFull   AlertCode = "pool-nearly-full"
	AlertPoolFull         AlertCode = "pool-full"
	AlertPoolCritical     AlertCode = "pool-critical"
	AlertKvdbUnhealthy    AlertCode = "kvdb-unhealthy"
	AlertFailoverDue      AlertCode = "failover-due"        // a domain may be lost and is about to be fenced
	AlertFailoverIdle     AlertCode = "failover-idle"       // a domain may be lost and is not going to be
	AlertFailoverPending  AlertCode = "failover-pending"    // a volume of a fenced domain has not been attached yet
	AlertFailoverNoKvdb   AlertCode = "failover-impossible" // the kvdb would be lost with the domain
)

// Alert is something that the operator should know.
type Alert struct {
	Code     AlertCode
	Severity Severity
	Resource string // domain/NAME, node/NAME, volume/ID, group/NAME, pool/UUID, kvdb
	Text     string
}

// Observed is what alerts are made of.
type Observed struct {
	View    *View
	Volumes []arbiter.Volume // nil if they could not be read
	RTTs    []RTT            // from this node
	Kvdb    error            // why the kvdb is not healthy, nil if it is
	// Members of the kvdb, if it is embedded.
	Members  []KvdbMember
	Failover bool                       // automatic failover is turned on
	Outlook  map[string]arbiter.Verdict // by domain
}

// Alerts returns what is wrong, worst first. The same state gives the same alerts: nothing is remembered.
func Alerts(o Observed) []Alert {
	var as []Alert
	add := func(c AlertCode, s Severity, resource, format string, args ...any) {
		as = append(as, Alert{c, s, resource, fmt.Sprintf(format, args...)})
	}
	if o.Kvdb != nil {
		add(AlertKvdbUnhealthy, Alarm, "kvdb", "the kvdb is out of reach: volumes in sync go on, nothing can be changed: %v", o.Kvdb)
	}
	for _, d := range o.View.Domains {
		on, res := fmt.Sprintf("domain %s is %s since %s (by %s: %s)", d.Name, d.State, d.Time.Format(time.RFC3339), d.Actor, d.Reason), "domain/"+d.Name
		switch d.State {
		case Fenced:
			add(AlertDomainFenced, Alarm, res, "%s: activate it when it is back", on)
		case Inactive:
			add(AlertDomainInactive, Warn, res, "%s: activate it when it may return", on)
		case Draining:
			add(AlertDomainDraining, Notify, res, "%s", on)
		case Rejoining:
			add(AlertDomainRejoining, Notify, res, "%s", on)
		case Active, Standby: // as it should be
		}
	}
	failoverAlerts(o, add)
	for _, n := range o.View.Nodes {
		if !n.Online {
			add(AlertNodeOffline, Warn, "node/"+n.Name, "node %s (%s, domain %s) does not keep its registration alive", n.Name, n.Address, n.Domain)
			continue
		}
		for _, p := range n.Pools {
			poolAlert(n, p, add)
		}
	}
	for _, u := range o.View.Unreadable {
		add(AlertRecordUnreadable, Alarm, u.Resource, "%s counts as it was last read, its record in the kvdb cannot be read: %s", u.Resource, u.Err)
	}
	for _, r := range o.RTTs {
		if r.High() {
			add(AlertRTTHigh, Warn, "node/"+r.Node, "round trip to node %s (domain %s) is %v at p99, above %v: every write waits for it", r.Node, r.Domain, r.P99, RTTWarning)
		}
	}
	for _, v := range o.Volumes {
		volumeAlert(v, add)
	}
	groupAlerts(o.Volumes, add)
	slices.SortStableFunc(as, func(a, b Alert) int { return cmp.Compare(b.Severity, a.Severity) })
	return as
}

// failoverAlerts tell what an arbiter does, or would not be able to do.
func failoverAlerts(o Observed, add addAlert) {
	for _, d := range o.View.Domains {
		res := "domain/" + d.Name
		switch v, ok := o.Outlook[d.Name]; {
		case !ok || !v.Lost():
		case v.Fence || v.Idle == arbiter.Confirming:
			add(AlertFailoverDue, Alarm, res, "%s", v.Text)
		default:
			add(AlertFailoverIdle, Alarm, res, "domain %s may be lost and is not fenced by itself (%s): %s", d.Name, v.Idle, v.Text)
		}
		if o.Failover && len(o.View.Domains) > 1 && d.State.MayRun() && !majorityWithout(o, d.Name) {
			add(AlertFailoverNoKvdb, Warn, res, "domain %s has so many members of the kvdb that no majority remains without it: nothing takes over from it by itself; place a member in a third domain", d.Name)
		}
	}
	for _, v := range o.Volumes {
		d, ok := o.View.Domain(v.Coordinator.Domain)
		if !ok || !v.Attached() || d.State != Fenced || d.Failover == nil {
			continue
		}
		_, _, cause := arbiter.Target(arbiter.View{Domains: states(o.View.Domains), Volumes: o.Volumes}, nodes(o.View), v, d.Failover.To)
		text := "it is being attached, see tandemctl failover report"
		if cause != "" {
			text = arbiter.Blocked{Volume: v, Cause: cause}.Text()
		}
		add(AlertFailoverPending, Alarm, "volume/"+v.ID, "volume %s, attached in domain %s when that was fenced by failover %d, does not go on yet: %s", v.Name, d.Name, d.Failover.ID, text)
	}
}

// majorityWithout reports whether the members of the kvdb outside a domain are a majority, as far as it is known where they are.
func majorityWithout(o Observed, domain string) bool {
	inside := 0
	for _, m := range o.Members {
		if n, ok := o.View.Node(m.Name); ok && n.Domain == domain {
			inside++
		}
	}
	return len(o.Members) == 0 || 2*(len(o.Members)-inside) > len(o.Members)
}

type addAlert func(c AlertCode, s Severity, resource, format string, args ...any)

func poolAlert(n Node, p Pool, add addAlert) {
	if p.Total <= 0 {
		return // unknown: the node that has it reports why
	}
	used, res := p.UsedPercent(), "pool/"+p.UUID
	switch {
	case used >= PoolEvictPercent:
		add(AlertPoolCritical, Alarm, res, "pool %s on node %s is %d %% full: a replica whose write finds no space there is evicted; free space", p.Path, n.Name, used)
	case used >= PoolFullPercent:
		add(AlertPoolFull, Alarm, res, "pool %s on node %s is %d %% full: it takes no new replicas", p.Path, n.Name, used)
	case used >= PoolWarnPercent:
		add(AlertPoolNearlyFull, Warn, res, "pool %s on node %s is %d %% full", p.Path, n.Name, used)
	}
}

func volumeAlert(v arbiter.Volume, add addAlert) {
	inSync := 0
	for _, r := range v.Replicas {
		if r.InSync {
			inSync++
		}
	}
	if v.Unreadable != "" {
		add(AlertVolumeUnreadable, Alarm, "volume/"+v.ID, "volume %s (%s) is left alone, a record of it in the kvdb cannot be read: %s", v.ID, v.Name, v.Unreadable)
	}
	if v.RolledBack != "" {
		add(AlertKvdbRollback, Alarm, "volume/"+v.ID, "volume %s (%s): KVDB_ROLLBACK: the kvdb was restored from a backup or replaced: %s", v.ID, v.Name, v.RolledBack)
	}
	switch {
	case inSync == len(v.Replicas):
	case inSync <= 1:
		add(AlertVolumeLastCopy, Alarm, "volume/"+v.ID, "volume %s has %d of %d replicas in sync: losing it loses data", v.Name, inSync, len(v.Replicas))
	default:
		add(AlertVolumeNotInSync, Warn, "volume/"+v.ID, "volume %s has %d of %d replicas in sync", v.Name, inSync, len(v.Replicas))
	}
}

// groupAlerts tell of domains in which a group has replicas, and not all of its volumes have one in sync.
func groupAlerts(vols []arbiter.Volume, add addAlert) {
	type side struct{ group, domain string }
	volumes, inSync := map[string]int{}, map[side]int{}
	for _, v := range vols {
		if v.Group == "" {
			continue
		}
		volumes[v.Group]++
		has := map[string]bool{}
		for _, r := range v.Replicas {
			has[r.Domain] = has[r.Domain] || r.InSync
		}
		for d, in := range has {
			n := 0
			if in {
				n = 1
			}
			inSync[side{v.Group, d}] += n
		}
	}
	sides := slices.SortedFunc(maps.Keys(inSync), func(a, b side) int {
		return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.domain, b.domain))
	})
	for _, s := range sides {
		if n := inSync[s]; n < volumes[s.group] {
			add(AlertGroupSplit, Warn, "group/"+s.group, "group %s has %d of %d volumes in sync in domain %s, and does not go on there by itself: \"tandemctl group inspect %s\" tells whether what is there fits together",
				s.group, n, volumes[s.group], s.domain, s.group)
		}
	}
}

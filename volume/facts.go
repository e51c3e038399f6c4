package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// DomainView shows the volumes to the manager of the domains. It implements clusterdomain.Volumes.
type DomainView struct{ c *Configs }

var _ clusterdomain.Volumes = DomainView{}

// NewDomainView returns the DomainView of the volumes behind c.
func NewDomainView(c *Configs) DomainView { return DomainView{c} }

// Facts implements clusterdomain.Volumes. A volume of which a record cannot be read is told as such.
func (d DomainView) Facts(ctx context.Context) ([]arbiter.Volume, error) {
	cfgs, _, err := d.c.store.List(ctx, d.c.keys.configs())
	if err != nil {
		return nil, fmt.Errorf("read configurations: %w", err)
	}
	specs, _, err := d.c.store.List(ctx, d.c.keys.volumes())
	if err != nil {
		return nil, fmt.Errorf("read volumes: %w", err)
	}
	name, unreadable := map[replication.VolumeID]string{}, map[replication.VolumeID]string{}
	manual := map[replication.VolumeID]bool{}
	for _, kv := range specs {
		id := d.c.keys.specOf(kv.Key)
		if id == (replication.VolumeID{}) {
			continue
		}
		s, err := parseSpec(kv)
		if err != nil {
			unreadable[id] = err.Error()
			continue
		}
		name[id], manual[id] = s.Name, s.Failover == FailoverManual
	}
	group, err := d.groups(ctx, manual, unreadable)
	if err != nil {
		return nil, err
	}
	vols := make([]arbiter.Volume, 0, len(cfgs))
	marks := map[replication.VolumeID]string{}
	for _, kv := range cfgs {
		if id, ok := d.c.keys.rollbackOf(kv.Key); ok {
			marks[id] = parseRollback(kv).describe(id)
		}
	}
	for _, kv := range cfgs {
		id, ok := d.c.keys.configOf(kv.Key)
		if !ok {
			continue
		}
		switch cfg, _, err := parseConfig(kv); {
		case err != nil:
			vols = append(vols, arbiter.Volume{ID: id.String(), Name: name[id], Unreadable: err.Error()})
		case cfg.Phase != replication.PhaseDeleting:
			v := fact(cfg, name[id])
			v.Unreadable, v.RolledBack, v.Manual = unreadable[id], marks[id], manual[id]
			vols = append(vols, v)
		}
		delete(unreadable, id)
		delete(marks, id)
	}
	for _, id := range sortedVolumes(marks) {
		vols = append(vols, arbiter.Volume{ID: id.String(), Name: name[id], RolledBack: marks[id]}) // without a configuration
	}
	for _, id := range sortedVolumes(unreadable) {
		vols = append(vols, arbiter.Volume{ID: id.String(), Unreadable: unreadable[id]}) // without a configuration
	}
	for i := range vols {
		vols[i].Group = group[vols[i].ID]
	}
	return vols, nil
}

// groups are the groups of the volumes that are in one, by their ids. The policy of a group goes for its volumes: it is noted in manual; and in
// unreadable where it cannot be read.
func (d DomainView) groups(ctx context.Context, manual map[replication.VolumeID]bool, unreadable map[replication.VolumeID]string) (map[string]string, error) {
	records, _, err := d.c.store.List(ctx, d.c.keys.groups())
	if err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	in, _, err := d.c.store.List(ctx, d.c.keys.groupedVolumes())
	if err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	policies, why := map[string]replication.Failover{}, map[string]string{}
	for _, kv := range records {
		name := strings.TrimPrefix(kv.Key, d.c.keys.groups())
		if e, err := parseGroup(kv); err != nil {
			why[name] = err.Error()
		} else {
			policies[name] = e.Failover
		}
	}
	group := map[string]string{}
	for _, kv := range in {
		id, err := replication.ParseVolumeID(strings.TrimPrefix(kv.Key, d.c.keys.groupedVolumes()))
		if err != nil {
			continue
		}
		name := string(kv.Value)
		group[id.String()] = name
		policy, known := policies[name]
		if manual[id] = known && policy != FailoverAutomatic; !known && why[name] != "" && unreadable[id] == "" {
			unreadable[id] = why[name]
		}
	}
	return group, nil
}

func sortedVolumes[T any](m map[replication.VolumeID]T) []replication.VolumeID {
	return slices.SortedFunc(maps.Keys(m), func(a, b replication.VolumeID) int { return slices.Compare(a[:], b[:]) })
}

func fact(cfg *replication.Config, name string) arbiter.Volume {
	v := arbiter.Volume{ID: cfg.Volume.String(), Name: name, Strict: cfg.Protection == replication.MaxProtection, Epoch: uint64(cfg.Epoch)}
	if !cfg.Needs.IsZero() {
		v.Needed = neededDomains(cfg)
	}
	if co := cfg.Coord; co != nil {
		v.Coordinator = arbiter.Coordinator{Node: string(co.Node), Domain: string(co.Domain)}
	}
	for _, id := range sortedMembers(cfg) {
		m := cfg.Members[id]
		v.Replicas = append(v.Replicas, arbiter.Replica{
			Node: string(m.Node), Domain: string(m.Domain), State: string(m.State), InSync: cfg.InISR(id),
		})
	}
	return v
}

// neededDomains are the domains whose replicas in sync the protection asks for: without them it is not met.
func neededDomains(cfg *replication.Config) (ds []string) {
	p, all := cfg.Policy(), memberDomains(cfg)
	for _, d := range slices.Compact(slices.Sorted(slices.Values(all))) {
		var rest []replication.DomainID
		for _, r := range cfg.ISR {
			if m := cfg.Members[r]; m.Domain != d {
				rest = append(rest, m.Domain)
			}
		}
		if !p.Met(rest, all) {
			ds = append(ds, string(d))
		}
	}
	return ds
}

// sortedMembers are the ids of cfg's members by domain, then node.
func sortedMembers(cfg *replication.Config) []replication.ReplicaID {
	return slices.SortedFunc(maps.Keys(cfg.Members), func(a, b replication.ReplicaID) int {
		ka, kb := memberKey(cfg, a), memberKey(cfg, b)
		return slices.Compare(ka[:], kb[:])
	})
}

func memberKey(cfg *replication.Config, r replication.ReplicaID) [3]string {
	m := cfg.Members[r]
	return [3]string{string(m.Domain), string(m.Node), r.String()}
}

// EvictDetached implements clusterdomain.Volumes. It needs no PREPARE: a detached volume has no write in flight and its replicas are
// equal; the takeover of the next attach names every missing member before it serves.
func (d DomainView) EvictDetached(ctx context.Context, volume, domain string) error {
	c := d.c
	id, err := replication.ParseVolumeID(volume)
	if err != nil {
		return err
	}
	domKey, incKey := clusterdomain.DomainKey(c.cluster, domain), clusterdomain.IncarnationKey(c.cluster)
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpGet, Key: c.keys.config(id)}, {Kind: kvdb.OpGet, Key: domKey}, {Kind: kvdb.OpGet, Key: incKey},
	}})
	if err != nil {
		return err
	}
	if look.Gets[0] == nil || look.Gets[1] == nil {
		return nil
	}
	if err := c.checkIncarnation(look.Gets[2]); err != nil {
		return err
	}
	cfg, mod, err := parseConfig(*look.Gets[0])
	if err != nil {
		return err
	}
	dom, err := clusterdomain.ParseDomain(*look.Gets[1])
	if err != nil {
		return err
	}
	next := withoutDomain(cfg, replication.DomainID(domain))
	if cfg.Phase != replication.PhaseDetached || dom.State != clusterdomain.Draining || next == nil {
		return nil
	}
	record, err := put(c.keys.config(id), next)
	if err != nil {
		return err
	}
	exposed, err := c.exposed(ctx, cfg, next)
	if err != nil {
		return err
	}
	_, err = c.store.Txn(ctx, kvdb.Txn{
		If: []kvdb.Cmp{
			{Key: c.keys.config(id), Target: kvdb.CmpMod, Revision: mod},
			{Key: domKey, Target: kvdb.CmpMod, Revision: dom.Mod},
			c.guard(), c.unmarked(id),
		},
		Then: slices.Concat(c.shrunk(cfg, next), exposed, []kvdb.Op{record}),
	})
	return err
}

// withoutDomain is cfg's successor without the domain's replicas in the in-sync set; nil if there are none, or no others (I2).
func withoutDomain(cfg *replication.Config, d replication.DomainID) *replication.Config {
	here := func(r replication.ReplicaID) bool { return cfg.Members[r].Domain == d }
	if !slices.ContainsFunc(cfg.ISR, here) {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(cfg.ISR), here)
	if len(rest) == 0 {
		return nil
	}
	next := cfg.Clone()
	next.ISR = rest
	for _, r := range cfg.ISR {
		if here(r) {
			m := cfg.Members[r]
			m.State, m.Reason = replication.MemberStale, "domain "+string(d)+" is deactivated"
			m.LeftEpoch, m.LeftGen = cfg.Epoch, cfg.Gen
			next.Members[r] = m
		}
	}
	return nextConfig(next, replication.PhaseDetached, "domain deactivated")
}

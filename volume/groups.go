package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// MaxGroup is how many volumes a group may have: its record and their configurations are read and compared in one transaction.
const MaxGroup = 50

const groupVersion = 1

// GroupEntry is a group with the configurations of its volumes, all as they were at one revision.
type GroupEntry struct {
	replication.Group
	Configs map[replication.VolumeID]*replication.Config // without those that have none

	mod  kvdb.Revision
	mods map[replication.VolumeID]kvdb.Revision
}

// CreateGroup makes a group, or returns the one of that name if it has the same volumes and policy.
// Errors: ErrInvalid, replication.ErrVolumeNotFound, ErrGroupExists, ErrInGroup, those of the store.
func (c *Catalogue) CreateGroup(ctx context.Context, name string, f replication.Failover, vols []replication.VolumeID) (*GroupEntry, error) {
	vols = sortVolumes(vols)
	switch {
	case checkGroupName(name) != nil:
		return nil, checkGroupName(name)
	case len(vols) > MaxGroup:
		return nil, fmt.Errorf("%w: %d volumes, a group has at most %d", ErrInvalid, len(vols), MaxGroup)
	}
	for {
		e, err := c.Group(ctx, name)
		switch {
		case err == nil && (!slices.Equal(e.Volumes, vols) || e.Failover != f):
			return nil, fmt.Errorf("%w: %s", ErrGroupExists, name)
		case err == nil || !errors.Is(err, ErrGroupNotFound):
			return e, err
		}
		e = &GroupEntry{Group: replication.Group{Version: groupVersion, Name: name, Created: time.Now().UTC(), Failover: f}}
		done, err := c.regroup(ctx, e, vols, nil, "group create", fmt.Sprintf("with %s; failover %s", named(vols), f))
		if done || err != nil {
			return e, err
		}
	}
}

// ChangeGroup adds volumes to a group and takes volumes out of it. Errors: ErrGroupNotFound, ErrInvalid, replication.ErrVolumeNotFound, ErrInGroup, those
// of the store.
func (c *Catalogue) ChangeGroup(ctx context.Context, name string, add, remove []replication.VolumeID) (*GroupEntry, error) {
	for {
		e, err := c.Group(ctx, name)
		if err != nil {
			return nil, err
		}
		in := func(v replication.VolumeID) bool { return e.Has(v) }
		plus, minus := slices.DeleteFunc(sortVolumes(add), in), slices.DeleteFunc(sortVolumes(remove), func(v replication.VolumeID) bool { return !in(v) })
		if len(plus)+len(minus) == 0 {
			return e, nil
		}
		if n := len(e.Volumes) + len(plus) - len(minus); n > MaxGroup {
			return nil, fmt.Errorf("%w: %d volumes, a group has at most %d", ErrInvalid, n, MaxGroup)
		}
		verb, outcome := "group add", named(plus)
		if len(plus) == 0 {
			verb, outcome = "group remove", named(minus)
		} else if len(minus) > 0 {
			outcome += "; removed " + named(minus)
		}
		done, err := c.regroup(ctx, e, plus, minus, verb, outcome)
		if done || err != nil {
			return e, err
		}
	}
}

// named lists volumes for the audit trail.
func named(vs []replication.VolumeID) string {
	if len(vs) == 0 {
		return "no volumes"
	}
	names := make([]string, len(vs))
	for i, v := range vs {
		names[i] = v.String()
	}
	return "volumes " + strings.Join(names, ", ")
}

// groupObject names a group in the audit trail.
func groupObject(name string) string { return "group/" + name }

// regroup tries once to write the group of e, which is changed, with other volumes, and verb and outcome into the audit trail. Where one
// that is added is not in sync there is no image of the group.
func (c *Catalogue) regroup(ctx context.Context, e *GroupEntry, add, remove []replication.VolumeID, verb, outcome string) (done bool, _ error) {
	t := kvdb.Txn{If: []kvdb.Cmp{{Key: c.keys.group(e.Name), Target: kvdb.CmpMod, Revision: e.mod}, c.configs.guard()}}
	cfgs, mods, err := c.configsOf(ctx, add)
	if err != nil {
		return false, err
	}
	for _, v := range add {
		if cfgs[v] == nil {
			return false, notFound(v)
		}
		kv, err := c.store.Get(ctx, c.keys.grouped(v))
		switch {
		case err == nil && string(kv.Value) != e.Name:
			return false, fmt.Errorf("%w: volume %s is in group %s", ErrInGroup, v, kv.Value)
		case err != nil && !errors.Is(err, kvdb.ErrNotFound):
			return false, err
		}
		t.If = append(t.If, kvdb.Cmp{Key: c.keys.config(v), Target: kvdb.CmpMod, Revision: mods[v]}, kvdb.Cmp{Key: c.keys.grouped(v), Target: kvdb.CmpAbsent})
		t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpPut, Key: c.keys.grouped(v), Value: []byte(e.Name)})
		if cfgs[v].Phase == replication.PhaseDetached {
			// Who is attaching it may have read that it is in no group. His election is compared with the revision, fails, and he reads again.
			same, err := put(c.keys.config(v), cfgs[v])
			if err != nil {
				return false, err
			}
			t.Then = append(t.Then, same)
		}
	}
	for _, v := range remove {
		t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpDelete, Key: c.keys.grouped(v)})
	}
	record, err := put(c.keys.group(e.Name), changed(&e.Group, add, remove, cfgs))
	if err != nil {
		return false, err
	}
	t.Then = append(t.Then, record)
	entry, err := c.trail.Stage(ctx, audit.Record{Verb: verb, Object: groupObject(e.Name), Outcome: outcome})
	if err != nil {
		return false, err
	}
	entry.AddTo(&t)
	res, err := c.store.Txn(ctx, t)
	if err != nil || !res.Succeeded {
		return false, err
	}
	now, err := c.Group(ctx, e.Name)
	if err == nil {
		*e = *now
	}
	return true, err
}

// changed is the group with other volumes; cfgs are the configurations of those that are added.
func changed(e *replication.Group, add, remove []replication.VolumeID, cfgs map[replication.VolumeID]*replication.Config) *replication.Group {
	g := e.Clone()
	g.Volumes = slices.DeleteFunc(sortVolumes(append(g.Volumes, add...)), func(v replication.VolumeID) bool { return slices.Contains(remove, v) })
	if g.Splits == nil {
		g.Splits = map[replication.DomainID]replication.GroupSplit{}
	}
	for d, s := range g.Splits {
		if len(add) > 0 && s.Broken == "" {
			s.Broken = fmt.Sprintf("volume %s came into the group later", add[0])
			g.Splits[d] = s
		}
	}
	added := replication.Group{Volumes: add}
	for d, s := range added.NotInSync(cfgs, time.Now().UTC()) {
		g.Splits[d] = s
	}
	return g
}

// DeleteGroup removes a group, not its volumes. None is nil.
func (c *Catalogue) DeleteGroup(ctx context.Context, name string) error {
	for {
		e, err := c.Group(ctx, name)
		if errors.Is(err, ErrGroupNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		t := kvdb.Txn{
			If:   []kvdb.Cmp{{Key: c.keys.group(name), Target: kvdb.CmpMod, Revision: e.mod}},
			Then: []kvdb.Op{{Kind: kvdb.OpDelete, Key: c.keys.group(name)}},
		}
		for _, v := range e.Volumes {
			t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpDelete, Key: c.keys.grouped(v)})
		}
		entry, err := c.trail.Stage(ctx, audit.Record{Verb: "group delete", Object: groupObject(name), Outcome: "deleted, with " + named(e.Volumes)})
		if err != nil {
			return err
		}
		entry.AddTo(&t)
		if res, err := c.store.Txn(ctx, t); err != nil || res.Succeeded {
			return err
		}
	}
}

// Group returns a group. Errors: ErrGroupNotFound, ErrBadRecord, those of the store.
func (c *Catalogue) Group(ctx context.Context, name string) (*GroupEntry, error) {
	for {
		kv, err := c.store.Get(ctx, c.keys.group(name))
		if errors.Is(err, kvdb.ErrNotFound) {
			return nil, fmt.Errorf("%w: %s", ErrGroupNotFound, name)
		}
		if err != nil {
			return nil, fmt.Errorf("read group %s: %w", name, err)
		}
		e, err := parseGroup(kv)
		if err != nil {
			return nil, err
		}
		// The record is read once more with the configurations: they are to be of one moment.
		t := kvdb.Txn{If: []kvdb.Cmp{{Key: c.keys.group(name), Target: kvdb.CmpMod, Revision: e.mod}}}
		for _, v := range e.Volumes {
			t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpGet, Key: c.keys.config(v)})
		}
		res, err := c.store.Txn(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("read group %s: %w", name, err)
		}
		if !res.Succeeded {
			continue
		}
		e.Configs, e.mods, err = c.parseConfigs(e.Volumes, res.Gets)
		return e, err
	}
}

// Groups returns all groups, by name.
func (c *Catalogue) Groups(ctx context.Context) ([]*GroupEntry, error) {
	kvs, _, err := c.store.List(ctx, c.keys.groups())
	if err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	var all []*GroupEntry
	for _, kv := range kvs {
		e, err := c.Group(ctx, kv.Key[len(c.keys.groups()):])
		switch {
		case errors.Is(err, ErrGroupNotFound):
		case err != nil:
			return nil, err
		default:
			all = append(all, e)
		}
	}
	return all, nil
}

// groupOf is the name of the volume's group, "" if it is in none.
func (c *Catalogue) groupOf(ctx context.Context, v replication.VolumeID) (string, error) {
	kv, err := c.store.Get(ctx, c.keys.grouped(v))
	if errors.Is(err, kvdb.ErrNotFound) {
		return "", nil
	}
	return string(kv.Value), err
}

// groupedVolumes are all volumes that are in a group (a linearizable read).
func (c *Catalogue) groupedVolumes(ctx context.Context) (map[replication.VolumeID]bool, error) {
	kvs, _, err := c.store.List(ctx, c.keys.groupedVolumes())
	if err != nil {
		return nil, err
	}
	in := make(map[replication.VolumeID]bool, len(kvs))
	for _, kv := range kvs {
		if v, err := replication.ParseVolumeID(strings.TrimPrefix(kv.Key, c.keys.groupedVolumes())); err == nil {
			in[v] = true
		}
	}
	return in, nil
}

// swapGroup writes next over e if nobody has changed the group since e was read, nor, with linked, one of the configurations.
func (c *Catalogue) swapGroup(ctx context.Context, e *GroupEntry, next *replication.Group, linked bool) error {
	record, err := put(c.keys.group(e.Name), next)
	if err != nil {
		return err
	}
	t := kvdb.Txn{If: []kvdb.Cmp{{Key: c.keys.group(e.Name), Target: kvdb.CmpMod, Revision: e.mod}, c.configs.guard()}, Then: []kvdb.Op{record}}
	if linked {
		for v, mod := range e.mods {
			t.If = append(t.If, kvdb.Cmp{Key: c.keys.config(v), Target: kvdb.CmpMod, Revision: mod})
		}
	}
	res, err := c.store.Txn(ctx, t)
	if err == nil && !res.Succeeded {
		err = fmt.Errorf("%w: group %s", ErrConflict, e.Name)
	}
	return err
}

// configsOf reads configurations as they are at one moment.
func (c *Catalogue) configsOf(ctx context.Context, vs []replication.VolumeID) (map[replication.VolumeID]*replication.Config, map[replication.VolumeID]kvdb.Revision, error) {
	var t kvdb.Txn
	for _, v := range vs {
		t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpGet, Key: c.keys.config(v)})
	}
	if len(vs) == 0 {
		return nil, nil, nil
	}
	res, err := c.store.Txn(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	return c.parseConfigs(vs, res.Gets)
}

func (c *Catalogue) parseConfigs(vs []replication.VolumeID, kvs []*kvdb.KV) (map[replication.VolumeID]*replication.Config, map[replication.VolumeID]kvdb.Revision, error) {
	cfgs, mods := map[replication.VolumeID]*replication.Config{}, map[replication.VolumeID]kvdb.Revision{}
	for i, kv := range kvs {
		if kv == nil {
			continue
		}
		cfg, mod, err := parseConfig(*kv)
		if err != nil {
			return nil, nil, err
		}
		cfgs[vs[i]], mods[vs[i]] = cfg, mod
	}
	return cfgs, mods, nil
}

func parseGroup(kv kvdb.KV) (*GroupEntry, error) {
	e := &GroupEntry{mod: kv.Mod}
	if err := json.Unmarshal(kv.Value, &e.Group); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	if e.Version != groupVersion {
		return nil, fmt.Errorf("%w: %s: schema version %d, want %d", ErrBadRecord, kv.Key, e.Version, groupVersion)
	}
	return e, nil
}

// sortVolumes returns the volumes sorted, each once.
func sortVolumes(vs []replication.VolumeID) []replication.VolumeID {
	vs = slices.Clone(vs)
	slices.SortFunc(vs, func(a, b replication.VolumeID) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(vs)
}

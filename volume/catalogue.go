package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// Cluster tells of domains and nodes.
type Cluster interface {
	View() *clusterdomain.View
	// Refresh makes View not older than the call.
	Refresh(ctx context.Context) error
}

// Catalogue is the list of volumes. Methods may be called concurrently, on any
// node. What they begin is carried on by the Reconcilers of all nodes.
type Catalogue struct {
	store   kvdb.Store
	keys    keys
	configs *Configs
	cluster Cluster
	trail   *audit.Log
	process replication.UUID // which this is: what was begun by another one on this node is not carried on
}

// NewCatalogue returns the catalogue behind c.
func NewCatalogue(c *Configs, cl Cluster) *Catalogue {
	return &Catalogue{store: c.store, keys: c.keys, configs: c, cluster: cl, trail: audit.New(c.store, c.cluster, cl.View().Local), process: replication.NewUUID()}
}

// Entry is a volume with everything that the kvdb knows of it.
type Entry struct {
	Spec
	Config    *replication.Config     // nil while CREATING
	Rollback  *Rollback               // a replica knows more than the kvdb; nil: nobody has found that
	Revision  kvdb.Revision           // of Config
	Reported  []replication.ReplicaID // replicas that were made (CREATING) or removed (DELETING)
	Group     string                  // "": none
	Published *Publication            // nil: to no node, unless Damage says something else
	Blank     *Blank                  // nil: somebody may have written to it
	Damage    error                   // the publication cannot be read; only who publishes depends on it
}

// Missing are the placements that the volume waits for, while CREATING or DELETING.
func (e *Entry) Missing() []Placement {
	if e.State == Ready {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(e.Placed), func(p Placement) bool { return slices.Contains(e.Reported, p.Replica) })
}

// Progress says in words what a volume waits for that is not READY, or of which a replica is being replaced, or what hinders it; else "".
func (e *Entry) Progress() string {
	var nodes []string
	for _, p := range e.Missing() {
		nodes = append(nodes, string(p.Node))
	}
	switch {
	case e.State == Creating:
		return "waits for its replica to be made on " + strings.Join(nodes, ", ")
	case e.State == Deleting:
		s := "waits for its replica to be removed on " + strings.Join(nodes, ", ")
		if e.Failure != "" {
			s = "creation failed: " + e.Failure + "; " + s
		}
		return s
	case e.Reverting != nil:
		return e.Reverting.progress()
	case e.Replacing != nil:
		return e.replaceProgress()
	case e.Damage != nil:
		return fmt.Sprintf("can be neither published nor unpublished: %v", e.Damage)
	default:
		return ""
	}
}

// replaceProgress says what a replacement waits for.
func (e *Entry) replaceProgress() string {
	p := e.Replacing
	s := fmt.Sprintf("replica %s is being replaced by a new one on node %s", p.Old, p.New.Node)
	if cfg := e.Config; cfg != nil && cfg.Phase != replication.PhaseDetached {
		return s + "; they are exchanged when the volume is detached"
	}
	return s + ", which has to make it"
}

// Create makes a volume and returns when it is READY. It is idempotent by name: if the same volume exists it is returned, or
// waited for. When ctx ends first the creation goes on.
//
// Errors: ErrInvalid, ErrVolumeExists, ErrGroupFull, ErrTooFewNodes, ErrTooLarge, ErrNoRoom, clusterdomain.ErrDomainNotFound,
// ErrCreateFailed (a replica could not be made; what was made is removed again), ErrNotReady (ctx ended), those of the store.
func (c *Catalogue) Create(ctx context.Context, r Request) (*Entry, error) {
	r = r.normalise()
	if err := r.validate(); err != nil {
		return nil, err
	}
	id := replication.VolumeID(replication.NewUUID())
	for {
		found, err := c.create(ctx, id, r)
		if err == nil && found != nil {
			e, err := c.wait(ctx, found.ID, found.Name)
			if err == nil && e.Joins != r.Joins {
				return nil, fmt.Errorf("create volume %s: %w: id %s, which a node of an older version has put into no group: delete it, and create it when all nodes are updated",
					r.Name, ErrVolumeExists, e.ID)
			}
			return e, err
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil && (!errors.Is(err, kvdb.ErrUnavailable) || !kvdb.Pause(ctx, casPause)) {
			return nil, fmt.Errorf("create volume %s: %w", r.Name, err)
		}
	}
}

// create looks for the volume and, if there is none, proposes it as id. Nil
// without error: it is to be repeated.
func (c *Catalogue) create(ctx context.Context, id replication.VolumeID, r Request) (*Spec, error) {
	old, err := c.byName(ctx, r.Name)
	switch {
	case err == nil && old.State == Deleting:
		return nil, nil // its name is free by now
	case err == nil && !old.Request.equal(r):
		return nil, fmt.Errorf("%w: id %s, %d bytes, %d replicas, %s, made for group %q", ErrVolumeExists, old.ID, old.Size, old.Replicas, old.Protection, old.Joins)
	case err == nil:
		return &old, nil
	case !errors.Is(err, replication.ErrVolumeNotFound):
		return nil, err
	}
	if r.Joins != "" {
		if err := c.checkJoin(ctx, r.Joins); err != nil {
			return nil, err
		}
	}
	var placed []Placement
	var source *kvdb.KV
	by, err := c.rules(ctx, r.Placing, id)
	if err != nil {
		return nil, err
	}
	if r.From == nil {
		placed, err = place(c.cluster.View(), r, by)
	} else {
		placed, source, err = c.placeFrom(ctx, r, by)
	}
	if err != nil {
		return nil, err
	}
	for i := range placed {
		placed[i].Replica = replication.ReplicaID(replication.NewUUID())
	}
	domains := make([]replication.DomainID, len(placed))
	for i := range placed {
		domains[i] = placed[i].Domain
	}
	if err := r.policy().Validate(domains); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s := Spec{ID: id, Request: r, State: Creating, Created: time.Now().UTC(), Placed: placed}
	record, err := put(c.keys.spec(id), s)
	if err != nil {
		return nil, err
	}
	blank, err := put(c.keys.blank(id), Blank{})
	if err != nil {
		return nil, err
	}
	begin := []kvdb.Op{blank}
	guards := []kvdb.Cmp{{Key: c.keys.name(r.Name), Target: kvdb.CmpAbsent}, {Key: c.keys.spec(id), Target: kvdb.CmpAbsent}}
	if source != nil { // it is what somebody has written, whatever that is: never to be formatted
		begin, guards = nil, append(guards, unchanged(source.Key, source))
	}
	outcome := fmt.Sprintf("%s, %d bytes, %d replicas", r.Name, r.Size, len(placed))
	if r.Joins != "" {
		outcome += ", for group " + r.Joins
	}
	t := kvdb.Txn{
		If: guards,
		Then: append([]kvdb.Op{
			{Kind: kvdb.OpPut, Key: c.keys.name(r.Name), Value: []byte(id.String())},
			record,
		}, begin...),
	}
	res, err := c.trail.Txn(ctx, t, audit.Record{Verb: "volume create", Object: object(id), Outcome: outcome})
	if err != nil {
		return nil, err
	}
	if !res.Succeeded {
		return nil, nil // somebody was faster, or an earlier attempt of ours took effect
	}
	return &s, nil
}

// object names a volume in the audit trail.
func object(id replication.VolumeID) string { return "volume/" + id.String() }

// byName returns the volume that has the name, or ErrVolumeNotFound. The spec may be gone
// between the two reads: then so is the name.
func (c *Catalogue) byName(ctx context.Context, name string) (Spec, error) {
	kv, err := c.store.Get(ctx, c.keys.name(name))
	if errors.Is(err, kvdb.ErrNotFound) {
		return Spec{}, fmt.Errorf("%w: %s", replication.ErrVolumeNotFound, name)
	}
	if err != nil {
		return Spec{}, err
	}
	id, err := replication.ParseVolumeID(string(kv.Value))
	if err != nil {
		return Spec{}, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	kv, err = c.store.Get(ctx, c.keys.spec(id))
	if errors.Is(err, kvdb.ErrNotFound) {
		return Spec{}, fmt.Errorf("%w: %s", replication.ErrVolumeNotFound, name)
	}
	if err != nil {
		return Spec{}, err
	}
	return parseSpec(kv)
}

// wait returns the volume when it is READY.
func (c *Catalogue) wait(ctx context.Context, id replication.VolumeID, name string) (*Entry, error) {
	sigCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	var last *Entry
	for range clusterdomain.Signal(sigCtx, c.store, c.keys.volume(id)) {
		e, err := c.Get(ctx, id)
		switch {
		case errors.Is(err, replication.ErrVolumeNotFound):
			return nil, fmt.Errorf("%w: volume %s was deleted meanwhile", ErrCreateFailed, name)
		case err != nil:
			continue // the signal comes again when the store does
		case e.State == Ready:
			return e, nil
		case e.State == Deleting && e.Failure != "":
			return nil, fmt.Errorf("%w: volume %s: %s", ErrCreateFailed, name, e.Failure)
		case e.State == Deleting:
			return nil, fmt.Errorf("%w: volume %s was deleted meanwhile", ErrCreateFailed, name)
		}
		last = e
	}
	what := ""
	if last != nil {
		what = ": " + last.Progress()
	}
	return nil, fmt.Errorf("%w: volume %s%s: %w", ErrNotReady, name, what, context.Cause(ctx))
}

// Resolve returns the id of a volume given by id or name. An id is not looked up.
// Errors: replication.ErrVolumeNotFound, ErrIncarnation, those of the store.
func (c *Catalogue) Resolve(ctx context.Context, ref string) (replication.VolumeID, error) {
	if id, err := replication.ParseVolumeID(ref); err == nil {
		return id, nil
	}
	s, err := c.byName(ctx, ref)
	if errors.Is(err, replication.ErrVolumeNotFound) {
		err = c.configs.orReplaced(ctx, err)
	}
	return s.ID, err
}

// Get returns one volume. Errors: replication.ErrVolumeNotFound, ErrIncarnation, those of the store.
func (c *Catalogue) Get(ctx context.Context, id replication.VolumeID) (*Entry, error) {
	kvs, _, err := c.store.List(ctx, c.keys.volume(id))
	if err != nil {
		return nil, fmt.Errorf("read volume %s: %w", id, err)
	}
	es, bad := c.entries(kvs)
	if err := bad[id]; err != nil {
		return nil, err
	}
	e, ok := es[id]
	if !ok {
		return nil, notFound(id)
	}
	e.Config, e.Revision, e.Rollback, err = c.configs.read(ctx, id)
	if err != nil && !errors.Is(err, replication.ErrVolumeNotFound) {
		return nil, err
	}
	return e, c.beside(ctx, e)
}

// List returns all volumes, by name, but for those of which a record cannot be read: DomainView tells of them.
func (c *Catalogue) List(ctx context.Context) ([]*Entry, error) {
	kvs, _, err := c.store.List(ctx, c.keys.volumes())
	if err != nil {
		return nil, fmt.Errorf("read volumes: %w", err)
	}
	es, _ := c.entries(kvs)
	cfgs, _, err := c.store.List(ctx, c.keys.configs())
	if err != nil {
		return nil, fmt.Errorf("read configurations: %w", err)
	}
	for _, kv := range cfgs {
		if id, ok := c.keys.rollbackOf(kv.Key); ok && es[id] != nil {
			es[id].Rollback = parseRollback(kv)
		}
		id, ok := c.keys.configOf(kv.Key)
		if e := es[id]; ok && e != nil {
			if e.Config, e.Revision, err = parseConfig(kv); err != nil {
				delete(es, id)
			}
		}
	}
	if err := c.listBeside(ctx, es); err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(es), func(a, b *Entry) int {
		return strings.Compare(a.Name+"\x00"+a.ID.String(), b.Name+"\x00"+b.ID.String())
	}), nil
}

// beside reads what is recorded of a volume beside its spec and its configuration.
func (c *Catalogue) beside(ctx context.Context, e *Entry) error {
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpGet, Key: c.keys.grouped(e.ID)}, {Kind: kvdb.OpGet, Key: c.keys.published(e.ID)}, {Kind: kvdb.OpGet, Key: c.keys.blank(e.ID)},
	}})
	if err != nil {
		return fmt.Errorf("read volume %s: %w", e.ID, err)
	}
	e.setGroup(look.Gets[0])
	e.setPublished(look.Gets[1])
	e.setBlank(look.Gets[2])
	return nil
}

// listBeside is beside for all.
func (c *Catalogue) listBeside(ctx context.Context, es map[replication.VolumeID]*Entry) error {
	for _, of := range []struct {
		prefix string
		set    func(*Entry, *kvdb.KV)
	}{
		{c.keys.groupedVolumes(), (*Entry).setGroup}, {c.keys.publications(), (*Entry).setPublished}, {c.keys.blanks(), (*Entry).setBlank},
	} {
		kvs, _, err := c.store.List(ctx, of.prefix)
		if err != nil {
			return fmt.Errorf("read volumes: %w", err)
		}
		for _, kv := range kvs {
			id, err := replication.ParseVolumeID(strings.TrimPrefix(kv.Key, of.prefix))
			if e := es[id]; err == nil && e != nil {
				of.set(e, &kv)
			}
		}
	}
	return nil
}

func (e *Entry) setGroup(kv *kvdb.KV) {
	if kv != nil {
		e.Group = string(kv.Value)
	}
}

// setPublished takes a publication that cannot be read for damage: an attach or a failover does not depend on it.
func (e *Entry) setPublished(kv *kvdb.KV) {
	e.Published, e.Damage = parsePublication(kv)
}

// setBlank takes a mark that cannot be read for none: a volume that may hold something is not formatted.
func (e *Entry) setBlank(kv *kvdb.KV) {
	if b, err := parseBlank(kv); err == nil {
		e.Blank = b
	}
}

// entries groups the keys under volumes by volume. bad are the volumes of which a record cannot be read, with the error:
// nothing is to be done for them, and nothing to be undone. A report without a spec belongs to
// a volume that was removed while its node wrote it; there is none, every report is guarded on the spec.
func (c *Catalogue) entries(kvs []kvdb.KV) (es map[replication.VolumeID]*Entry, bad map[replication.VolumeID]error) {
	es, bad = map[replication.VolumeID]*Entry{}, map[replication.VolumeID]error{}
	reports := map[replication.VolumeID]map[string][]replication.ReplicaID{}
	for _, kv := range kvs {
		id, rest, ok := c.keys.splitVolume(kv.Key)
		if !ok {
			continue
		}
		if rest == "spec" {
			s, err := parseSpec(kv)
			if err != nil {
				bad[id] = err
				continue
			}
			es[id] = &Entry{Spec: s}
			continue
		}
		kind, replica, _ := strings.Cut(rest, "/")
		u, err := replication.ParseUUID(replica)
		if err != nil {
			bad[id] = fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
			continue
		}
		if reports[id] == nil {
			reports[id] = map[string][]replication.ReplicaID{}
		}
		reports[id][kind] = append(reports[id][kind], replication.ReplicaID(u))
	}
	for id := range bad {
		delete(es, id)
	}
	for id, e := range es {
		switch e.State {
		case Creating:
			e.Reported = reports[id]["made"]
		case Deleting:
			e.Reported = reports[id]["removed"]
		case Ready: // its configuration tells
		}
	}
	return es, bad
}

// Delete turns a volume to DELETING; nobody can attach it any more. A volume that
// does not exist, or is being deleted, is no error. Errors: ErrAttached, those of the store.
func (c *Catalogue) Delete(ctx context.Context, id replication.VolumeID) error {
	return c.DeleteAt(ctx, id, nil)
}

// DeleteAt is Delete, unless the volume's configuration is at another epoch than the one expected; nil: whatever it is at.
// Errors: ErrConflict too.
func (c *Catalogue) DeleteAt(ctx context.Context, id replication.VolumeID, expected *replication.Epoch) error {
	for {
		done, err := c.toDeleting(ctx, id, "", expected)
		if done {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		switch {
		case err == nil:
		case !errors.Is(err, kvdb.ErrUnavailable) || !kvdb.Pause(ctx, casPause):
			return err
		}
	}
}

// checkEpoch reports ErrConflict unless cfg, nil for a volume that has none, is at the epoch that an operator expects.
func checkEpoch(cfg *replication.Config, expected *replication.Epoch) error {
	switch {
	case expected == nil:
		return nil
	case cfg == nil:
		return fmt.Errorf("%w: epoch %d is expected, it has no configuration yet", ErrConflict, *expected)
	case cfg.Epoch != *expected:
		return fmt.Errorf("%w: epoch %d is expected, it is at %d: look and decide again", ErrConflict, *expected, cfg.Epoch)
	}
	return nil
}

// toDeleting tries once to turn a volume to DELETING; with a failure only if it is CREATING, and only at the epoch that is expected.
func (c *Catalogue) toDeleting(ctx context.Context, id replication.VolumeID, failure string, expected *replication.Epoch) (done bool, _ error) {
	inc := clusterdomain.IncarnationKey(c.configs.cluster)
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpGet, Key: c.keys.spec(id)}, {Kind: kvdb.OpGet, Key: c.keys.config(id)}, {Kind: kvdb.OpGet, Key: inc},
		{Kind: kvdb.OpGet, Key: c.keys.rollback(id)}, {Kind: kvdb.OpGet, Key: c.keys.grouped(id)},
		{Kind: kvdb.OpGet, Key: c.keys.snapshotsOf(id)},
	}})
	if err != nil {
		return false, err
	}
	kv, cfgKV := look.Gets[0], look.Gets[1]
	if err := c.configs.checkIncarnation(look.Gets[2]); err != nil {
		return false, err
	}
	if mark := look.Gets[3]; mark != nil {
		return false, rolledBack(id, mark)
	}
	if kv == nil {
		return true, nil
	}
	s, err := parseSpec(*kv)
	if err != nil {
		return false, err
	}
	if s.State == Deleting || failure != "" && s.State != Creating {
		return true, nil
	}
	switch ids, err := parseSnapshotsOf(look.Gets[5]); {
	case err != nil:
		return false, err
	case len(ids) > 0:
		return false, fmt.Errorf("%w: it has %d, see \"tandemctl volume snapshot list\"", ErrHasSnapshots, len(ids))
	}
	s.State, s.Failure = Deleting, failure
	if p := s.Replacing; p != nil {
		s.Placed, s.Replacing = append(s.Placed, p.New), nil // it may be made by now
	}
	record, err := put(c.keys.spec(id), s)
	if err != nil {
		return false, err
	}
	t := kvdb.Txn{
		If: []kvdb.Cmp{
			{Key: c.keys.spec(id), Target: kvdb.CmpMod, Revision: kv.Mod},
			c.configs.guard(), c.configs.unmarked(id), unchanged(c.keys.snapshotsOf(id), look.Gets[5]),
		},
		Then: []kvdb.Op{
			record,
			{Kind: kvdb.OpDelete, Key: c.keys.name(s.Name)},
		},
	}
	if err := c.leave(ctx, &t, &s, look.Gets[4]); err != nil {
		return false, err
	}
	rec := audit.Record{Verb: "volume delete", Object: object(id), Reason: failure, Outcome: s.Name + " is being deleted"}
	guard := kvdb.Cmp{Key: c.keys.config(id), Target: kvdb.CmpAbsent}
	if cfgKV == nil {
		if err := checkEpoch(nil, expected); err != nil {
			return false, err
		}
	} else {
		cfg, mod, err := parseConfig(*cfgKV)
		if err != nil {
			return false, err
		}
		if err := checkEpoch(cfg, expected); err != nil {
			return false, err
		}
		if cfg.Phase != replication.PhaseDetached {
			return false, fmt.Errorf("%w on node %s: detach it first", ErrAttached, coordinator(cfg).Node)
		}
		guard = kvdb.Cmp{Key: c.keys.config(id), Target: kvdb.CmpMod, Revision: mod}
		deleting := nextConfig(cfg, replication.PhaseDeleting, "delete")
		next, err := put(c.keys.config(id), deleting)
		if err != nil {
			return false, err
		}
		t.Then, rec.Epoch = append(t.Then, next), uint64(deleting.Epoch)
	}
	t.If = append(t.If, guard)
	res, err := c.trail.Txn(ctx, t, rec)
	return err == nil && res.Succeeded, err
}

package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// NodeReport is what a node tells of its replicas and of the volumes that it serves.
type NodeReport struct {
	Node     replication.NodeID
	Domain   replication.DomainID
	Replicas []FoundReplica
	Serving  []*replication.Config // of coordinators that serve I/O, or will when all in-sync replicas have stored it

	// Incarnation of the kvdb that the node goes by; it goes by none that does not follow it. Zero: it does not tell.
	Incarnation replication.UUID
}

// Importer writes volumes anew into a kvdb that was lost or rolled back (protocol.md 10.5).
type Importer struct {
	Catalogue *Catalogue
	Node      replication.NodeID // this one
	// Ask asks a node, also this one, for its report.
	Ask    func(ctx context.Context, n clusterdomain.Node) (*NodeReport, error)
	Logger *zap.Logger
}

// ImportRequest says what to import.
type ImportRequest struct {
	Volumes []string // ids or names
	All     bool
	DryRun  bool
	Accept  []string // ids or names of volumes of which a replica that does not answer may be given up
}

// Imported is what was done, or would be, about one volume.
type Imported struct {
	ID   replication.VolumeID
	Name string
	Kvdb replication.Epoch // 0: it has no configuration
	importPlan
}

// ImportResult is the answer to an ImportRequest.
type ImportResult struct {
	Volumes []Imported // by name
	Silent  map[replication.NodeID]error
	Written bool
}

// ErrNotImported: nothing was written, a volume that was asked for cannot be imported.
var ErrNotImported = errors.New("volume: not imported")

// askTimeout bounds the question to one node.
const askTimeout = 5 * time.Second

// Run imports. Nothing is written unless everything asked for can be. Volumes are written one by one, each whole; what was cut off in the
// middle is completed by the next import. Of two imports at once one ends with ErrConflict.
//
// Errors: ErrInvalid, replication.ErrVolumeNotFound, ErrNotImported (a volume is refused), ErrConflict, those of the store.
func (im *Importer) Run(ctx context.Context, q ImportRequest) (*ImportResult, error) {
	if q.All == (len(q.Volumes) > 0) {
		return nil, fmt.Errorf("%w: name the volumes to import, or ask for all", ErrInvalid)
	}
	s, err := im.look(ctx)
	if err != nil {
		return nil, err
	}
	res := &ImportResult{Silent: s.silent}
	plans, err := s.plan(q)
	if err != nil {
		return nil, err
	}
	refused, todo := []string{}, 0
	for _, p := range plans {
		res.Volumes = append(res.Volumes, *p)
		switch p.action {
		case importRefused:
			refused = append(refused, fmt.Sprintf("volume %s (%s): %s", p.Name, p.ID, p.text))
		case importWrite:
			todo++
		case importNone:
			if s.evidence[p.ID].mark != nil {
				todo++
			}
		}
	}
	switch {
	case q.DryRun || todo == 0 && len(refused) == 0 && !s.stranded:
		return res, nil
	case len(refused) > 0:
		return nil, fmt.Errorf("%w: nothing was written, import the others with --volume: %s", ErrNotImported, strings.Join(refused, "; "))
	}
	now, err := im.begin(ctx, s)
	if err != nil {
		return nil, err
	}
	for _, p := range plans {
		if err := im.write(ctx, s, p, now); err != nil {
			return nil, fmt.Errorf("import volume %s: %w", p.Name, err)
		}
	}
	res.Written = true
	return res, nil
}

// sight is what an import goes by.
type sight struct {
	inc       kvdb.KV
	life      clusterdomain.Life
	evidence  map[replication.VolumeID]*evidence
	cfgMods   map[replication.VolumeID]kvdb.Revision
	specMods  map[replication.VolumeID]kvdb.Revision
	names     map[string]replication.VolumeID
	silent    map[replication.NodeID]error
	elsewhere []string // incarnations that replicas are of and nodes go by
	stranded  bool     // a node goes by one that the kvdb does not follow
}

// look asks the nodes, then reads the kvdb: what a node knows was there before.
func (im *Importer) look(ctx context.Context) (*sight, error) {
	c := im.Catalogue
	if err := c.cluster.Refresh(ctx); err != nil {
		return nil, err
	}
	s := &sight{
		evidence: map[replication.VolumeID]*evidence{}, cfgMods: map[replication.VolumeID]kvdb.Revision{}, specMods: map[replication.VolumeID]kvdb.Revision{},
		names: map[string]replication.VolumeID{}, silent: map[replication.NodeID]error{},
	}
	reports := im.ask(ctx, s)
	var err error
	if s.inc, err = c.store.Get(ctx, clusterdomain.IncarnationKey(c.configs.cluster)); err != nil {
		return nil, fmt.Errorf("read the incarnation of the kvdb: %w", err)
	}
	if s.life, err = clusterdomain.ParseLife(s.inc); err != nil {
		return nil, err
	}
	l, err := parseLife(s.inc)
	if err != nil {
		return nil, err
	}
	if err := im.readKvdb(ctx, s); err != nil {
		return nil, err
	}
	for _, r := range reports {
		for _, f := range r.Replicas {
			f.Node, f.Domain = r.Node, r.Domain
			e := s.of(f.Volume)
			e.found = append(e.found, f)
			s.follow(f.Incarnation, l)
		}
		s.follow(r.Incarnation, l)
		s.stranded = s.stranded || !r.Incarnation.IsZero() && l.age(r.Incarnation) < 0
		for _, cfg := range r.Serving {
			e := s.of(cfg.Volume)
			e.serving = append(e.serving, cfg)
		}
	}
	for _, e := range s.evidence {
		e.life = l
	}
	return s, nil
}

// follow has the next incarnation follow u.
func (s *sight) follow(u replication.UUID, l *life) {
	if !u.IsZero() && u != l.id && !slices.Contains(s.elsewhere, u.String()) {
		s.elsewhere = append(s.elsewhere, u.String())
	}
}

// of is the evidence of a volume.
func (s *sight) of(id replication.VolumeID) *evidence {
	if s.evidence[id] == nil {
		s.evidence[id] = &evidence{id: id}
	}
	return s.evidence[id]
}

// ask asks every node that is registered and may hold replicas.
func (im *Importer) ask(ctx context.Context, s *sight) []*NodeReport {
	type answer struct {
		node   replication.NodeID
		report *NodeReport
		err    error
	}
	answers := make(chan answer)
	asked := 0
	for _, n := range im.Catalogue.cluster.View().Nodes {
		if n.Witness {
			continue
		}
		asked++
		go func() {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			r, err := im.Ask(ctx, n)
			if err == nil {
				r.Node, r.Domain = replication.NodeID(n.Name), replication.DomainID(n.Domain)
			}
			answers <- answer{replication.NodeID(n.Name), r, err}
		}()
	}
	var reports []*NodeReport
	for range asked {
		a := <-answers
		if a.err != nil {
			s.silent[a.node] = a.err
			continue
		}
		reports = append(reports, a.report)
	}
	slices.SortFunc(reports, func(a, b *NodeReport) int { return cmp.Compare(a.Node, b.Node) })
	return reports
}

func (im *Importer) readKvdb(ctx context.Context, s *sight) error {
	c := im.Catalogue
	cfgs, _, err := c.store.List(ctx, c.keys.configs())
	if err != nil {
		return fmt.Errorf("read configurations: %w", err)
	}
	specs, _, err := c.store.List(ctx, c.keys.volumes())
	if err != nil {
		return fmt.Errorf("read volumes: %w", err)
	}
	for _, kv := range cfgs {
		if id, ok := c.keys.rollbackOf(kv.Key); ok {
			s.of(id).mark = parseRollback(kv)
		}
		if id, ok := c.keys.configOf(kv.Key); ok {
			// One that cannot be read is written anew.
			if cfg, _, err := parseConfig(kv); err == nil {
				s.of(id).cfg = cfg
			}
			s.of(id)
			s.cfgMods[id] = kv.Mod
		}
	}
	for _, kv := range specs {
		id := c.keys.specOf(kv.Key)
		if id == (replication.VolumeID{}) {
			continue
		}
		s.specMods[id] = kv.Mod
		if sp, err := parseSpec(kv); err == nil {
			s.of(id).spec = &sp
			s.names[sp.Name] = id
		}
	}
	return nil
}

// plan decides about every volume that is asked for, by name.
func (s *sight) plan(q ImportRequest) ([]*Imported, error) {
	names := map[replication.VolumeID]string{}
	for id, e := range s.evidence {
		names[id] = e.id.String()
		if sp := e.anySpec(e.found); sp != nil {
			names[id] = sp.Name
		}
	}
	is := func(id replication.VolumeID, ref string) bool { return ref == id.String() || ref == names[id] }
	for _, ref := range slices.Concat(q.Volumes, q.Accept) {
		n := 0
		for id := range s.evidence {
			if is(id, ref) {
				n++
			}
		}
		switch {
		case n == 0:
			return nil, fmt.Errorf("%w: %s: neither the kvdb nor a replica on a node that answers knows it", replication.ErrVolumeNotFound, ref)
		case n > 1:
			return nil, fmt.Errorf("%w: %d volumes are named %s, give the id", ErrInvalid, n, ref)
		}
	}
	var plans []*Imported
	for _, id := range slices.SortedFunc(maps.Keys(s.evidence), func(a, b replication.VolumeID) int {
		return cmp.Or(cmp.Compare(names[a], names[b]), slices.Compare(a[:], b[:]))
	}) {
		e := s.evidence[id]
		if !q.All && !slices.ContainsFunc(q.Volumes, func(ref string) bool { return is(id, ref) }) {
			continue
		}
		e.accept = slices.ContainsFunc(q.Accept, func(ref string) bool { return is(id, ref) })
		p := &Imported{ID: id, Name: names[id], importPlan: planImport(e)}
		if e.cfg != nil {
			p.Kvdb = e.cfg.Epoch
		}
		if p.action == importWrite {
			p.Name = s.freeName(p.spec)
			p.spec.Name = p.Name
		}
		plans = append(plans, p)
	}
	return plans, nil
}

// freeName is the volume's name, or one like it if another volume has that by now; it is taken then.
func (s *sight) freeName(sp *Spec) string {
	name := sp.Name
	if other, taken := s.names[name]; taken && other != sp.ID {
		suffix := "-" + sp.ID.String()[:8]
		name = name[:min(len(name), MaxName-len(suffix))] + suffix
	}
	s.names[name] = sp.ID
	return name
}

// begin makes a new incarnation, which the others are former ones of, and returns its value. It is the only
// moment in which two imports meet: one wins.
func (im *Importer) begin(ctx context.Context, s *sight) (*life, error) {
	_, value, err := s.life.Next("import on node "+string(im.Node), s.elsewhere...)
	if err != nil {
		return nil, err
	}
	l, err := parseLife(kvdb.KV{Key: s.inc.Key, Value: value})
	if err != nil {
		return nil, err
	}
	t := kvdb.Txn{
		If:   []kvdb.Cmp{{Key: s.inc.Key, Target: kvdb.CmpMod, Revision: s.inc.Mod}},
		Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: s.inc.Key, Value: value}},
	}
	res, err := im.commit(ctx, t, audit.Record{
		Verb: "kvdb import", Object: "kvdb", Outcome: fmt.Sprintf("begun, incarnation %s follows %s", l.id, s.life.UUID),
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("begin a new incarnation of the kvdb: %w", err)
	case !res.Succeeded:
		return nil, fmt.Errorf("%w: another import came first; look with --dry-run, and import again if there is anything left", ErrConflict)
	}
	im.Logger.Warn("import of the kvdb begun", zap.Stringer("incarnation", l.id), zap.String("former", s.life.UUID))
	return l, nil
}

// write puts one volume in force, whole or not at all.
func (im *Importer) write(ctx context.Context, s *sight, p *Imported, now *life) error {
	c := im.Catalogue
	t := kvdb.Txn{
		If: []kvdb.Cmp{
			{Key: s.inc.Key, Target: kvdb.CmpValue, Value: now.value},
			{Key: c.keys.config(p.ID), Target: kvdb.CmpMod, Revision: s.cfgMods[p.ID]},
			{Key: c.keys.spec(p.ID), Target: kvdb.CmpMod, Revision: s.specMods[p.ID]},
		},
		Then: []kvdb.Op{{Kind: kvdb.OpDelete, Key: c.keys.rollback(p.ID)}},
	}
	if p.action == importWrite {
		ops, err := im.records(s.evidence[p.ID], p, now)
		if err != nil {
			return err
		}
		exposed, err := c.configs.exposed(ctx, nil, p.config)
		if err != nil {
			return err
		}
		t.Then = append(append(t.Then, ops...), exposed...)
		t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpDelete, Key: c.keys.blank(p.ID)}) // what is known of it is old
	} else if s.evidence[p.ID].mark == nil {
		return nil
	}
	res, err := im.commit(ctx, t, p.record(now))
	switch {
	case err != nil:
		return err
	case !res.Succeeded:
		return fmt.Errorf("%w: import again", ErrConflict)
	case p.action == importWrite:
		im.Logger.Warn("volume imported", zap.Stringer("volume-id", p.ID), zap.String("name", p.Name), zap.Uint64("epoch", uint64(p.config.Epoch)),
			zap.Uint64("kvdb-epoch", uint64(p.Kvdb)), zap.String("from", p.text), zap.Bool("data-loss", p.loss))
	}
	return nil
}

// commit carries t out with its entry in the audit trail. Of another entry that came first it tries again, a few times.
func (im *Importer) commit(ctx context.Context, t kvdb.Txn, r audit.Record) (res kvdb.TxnResult, _ error) {
	for range 8 {
		entry, err := im.Catalogue.trail.Stage(ctx, r)
		if err != nil {
			return res, err
		}
		with := kvdb.Txn{If: slices.Clone(t.If), Then: slices.Clone(t.Then)}
		entry.AddTo(&with)
		if res, err = im.Catalogue.store.Txn(ctx, with); err != nil || res.Succeeded {
			return res, err
		}
	}
	return res, nil
}

// record is what the audit trail says of the import of p.
func (p *Imported) record(now *life) audit.Record {
	r := audit.Record{Verb: "kvdb import", Object: object(p.ID), Outcome: fmt.Sprintf("the kvdb is right, incarnation %s", now.id), Epoch: uint64(p.Kvdb)}
	if p.action == importWrite {
		r.Outcome = fmt.Sprintf("written %s, incarnation %s, the kvdb had epoch %d", p.text, now.id, p.Kvdb)
		r.Epoch = uint64(p.config.Epoch)
	}
	if p.loss {
		r.Lost = []string{p.ID.String()}
	}
	return r
}

// records are the writes of one volume.
func (im *Importer) records(e *evidence, p *Imported, now *life) ([]kvdb.Op, error) {
	c, cfg := im.Catalogue, p.config
	if cfg.Gen == 0 { // not one that a coordinator serves by
		cfg.Gen, cfg.ProposalID = newGen(), replication.NewUUID()
		if p.loss {
			cfg.Forced = now.id
		}
		cfg.History = append(cfg.History, replication.EpochRecord{Epoch: cfg.Epoch, Gen: cfg.Gen, ISR: slices.Clone(cfg.ISR), Cause: "import"})
	}
	if p.spec.Created.IsZero() {
		p.spec.Created = time.Now().UTC()
	}
	config, err := put(c.keys.config(p.ID), cfg)
	if err != nil {
		return nil, err
	}
	spec, err := put(c.keys.spec(p.ID), p.spec)
	if err != nil {
		return nil, err
	}
	ops := append(c.configs.shrunk(nil, cfg), config, spec, kvdb.Op{Kind: kvdb.OpPut, Key: c.keys.name(p.Name), Value: []byte(p.ID.String())})
	if e.spec != nil && e.spec.Name != p.Name {
		ops = append(ops, kvdb.Op{Kind: kvdb.OpDelete, Key: c.keys.name(e.spec.Name)})
	}
	return ops, nil
}

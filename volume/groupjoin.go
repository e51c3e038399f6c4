package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// A volume that is asked to be in a group comes into it with its first configuration, in one transaction: nobody can attach it before, so that nothing is ever written
// to it outside of its group, and there is no step between the two to be lost. A group that is not there yet is made in that transaction too.
// What came into a group so leaves it when it is deleted, likewise in one transaction, and the last one takes the group along.

func checkGroupName(name string) error {
	if len(name) > MaxName || !nameSyntax.MatchString(name) {
		return fmt.Errorf("%w: group %.200q: want at most %d letters, digits, '.', '_' or '-', the first and the last a letter or digit", ErrInvalid, name, MaxName)
	}
	return nil
}

// groupRecord reads the record of a group alone. One that is not there has revision 0.
func (c *Catalogue) groupRecord(ctx context.Context, name string) (*GroupEntry, error) {
	kv, err := c.store.Get(ctx, c.keys.group(name))
	if errors.Is(err, kvdb.ErrNotFound) {
		return &GroupEntry{Group: replication.Group{Version: groupVersion, Name: name, Made: true}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read group %s: %w", name, err)
	}
	return parseGroup(kv)
}

// checkJoin reports ErrGroupFull if no volume can join the group.
func (c *Catalogue) checkJoin(ctx context.Context, name string) error {
	e, err := c.groupRecord(ctx, name)
	if err != nil {
		return err
	}
	return e.checkRoom()
}

func (e *GroupEntry) checkRoom() error {
	if n := len(e.Volumes); n >= MaxGroup {
		return fmt.Errorf("%w: group %s has %d, at most %d are possible: choose another one, or take volumes out of it", ErrGroupFull, e.Name, n, MaxGroup)
	}
	return nil
}

// join adds to t, which writes cfg, the first configuration of s, what puts the volume into the group that it joins. It returns the revision of the group's record
// with which t is compared. Errors: ErrGroupFull, ErrBadRecord, those of the store.
func (c *Catalogue) join(ctx context.Context, t *kvdb.Txn, s *Spec, cfg *replication.Config) (kvdb.Revision, error) {
	e, err := c.groupRecord(ctx, s.Joins)
	if err != nil {
		return 0, err
	}
	if err := e.checkRoom(); err != nil {
		return 0, err
	}
	if e.mod == 0 {
		if e.Created, e.Failover = s.Created, s.Failover; e.Failover == "" {
			e.Failover = FailoverAutomatic
		}
	}
	record, err := put(c.keys.group(e.Name), changed(&e.Group, []replication.VolumeID{s.ID}, nil, map[replication.VolumeID]*replication.Config{s.ID: cfg}))
	if err != nil {
		return 0, err
	}
	t.If = append(t.If, kvdb.Cmp{Key: c.keys.group(e.Name), Target: kvdb.CmpMod, Revision: e.mod}, kvdb.Cmp{Key: c.keys.grouped(s.ID), Target: kvdb.CmpAbsent})
	t.Then = append(t.Then, record, kvdb.Op{Kind: kvdb.OpPut, Key: c.keys.grouped(s.ID), Value: []byte(e.Name)})
	return e.mod, nil
}

// leave adds to t, which turns s to DELETING, what takes the volume out of the group that it is in by its mark. ErrInGroup: it did not come into that one when it was made,
// so that whoever put it there takes it out.
func (c *Catalogue) leave(ctx context.Context, t *kvdb.Txn, s *Spec, mark *kvdb.KV) error {
	t.If = append(t.If, unchanged(c.keys.grouped(s.ID), mark))
	if mark == nil {
		return nil
	}
	name := string(mark.Value)
	if name != s.Joins {
		return fmt.Errorf("%w: %s: take it out first", ErrInGroup, name)
	}
	e, err := c.groupRecord(ctx, name)
	if err != nil {
		return err
	}
	t.If = append(t.If, kvdb.Cmp{Key: c.keys.group(name), Target: kvdb.CmpMod, Revision: e.mod})
	t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpDelete, Key: c.keys.grouped(s.ID)})
	if e.mod == 0 {
		return nil
	}
	g := changed(&e.Group, nil, []replication.VolumeID{s.ID}, nil)
	record := kvdb.Op{Kind: kvdb.OpDelete, Key: c.keys.group(name)}
	if len(g.Volumes) > 0 || !g.Made {
		if record, err = put(c.keys.group(name), g); err != nil {
			return err
		}
	}
	t.Then = append(t.Then, record)
	return nil
}

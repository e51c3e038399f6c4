package volume

import (
	"context"
	"fmt"
	"sync"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// unshown are volumes that this node may attach though they are being put back to a snapshot, by how many ask for that.
type unshown struct {
	mu sync.Mutex
	n  map[replication.VolumeID]int
}

func (u *unshown) has(v replication.VolumeID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n[v] > 0
}

func (u *unshown) add(v replication.VolumeID, n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n == nil {
		u.n = map[replication.VolumeID]int{}
	}
	if u.n[v] += n; u.n[v] == 0 {
		delete(u.n, v)
	}
}

// Unshown lets attachments of a volume that this node begins until done is called go on though it is being put back to a snapshot. The caller sees to it that nobody
// reads or writes by them but who puts it back, and that it is handed over to nobody.
func (c *Configs) Unshown(v replication.VolumeID) (done func()) {
	c.unshown.add(v, 1)
	return func() { c.unshown.add(v, -1) }
}

// CheckReverting returns ErrReverting if v is being put back to a snapshot and this node does not attach it for that. It is a clear error before a takeover is begun; the
// transaction of the takeover is what nobody gets past.
func (c *Configs) CheckReverting(ctx context.Context, v replication.VolumeID) error {
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: c.keys.spec(v)}}})
	if err != nil {
		return fmt.Errorf("read volume %s: %w", v, err)
	}
	return c.checkReverting(v, look.Gets[0])
}

// checkReverting is CheckReverting by the record of v, nil if there is none.
func (c *Configs) checkReverting(v replication.VolumeID, spec *kvdb.KV) error {
	if spec == nil || c.unshown.has(v) {
		return nil
	}
	s, err := parseSpec(*spec)
	if err == nil && s.Reverting != nil {
		err = s.Reverting.refuse()
	}
	return err
}

// unreverted wants that the volume, whose record is spec, nil if there is none, is not being put back to a snapshot, if the change gives it another attachment, other than for that on this node.
func (s *swap) unreverted(prev *replication.Config, spec *kvdb.KV) ([]kvdb.Cmp, error) {
	if s.next.ForkGen != prev.ForkGen || !attaches(prev, s.next) {
		return nil, nil
	}
	v := s.next.Volume
	if s.c.unshown.has(v) {
		if isHandover(s.next) {
			return nil, fmt.Errorf("%w: it is not handed over meanwhile", ErrReverting)
		}
		return nil, nil
	}
	if err := s.c.checkReverting(v, spec); err != nil {
		return nil, err
	}
	return []kvdb.Cmp{unchanged(s.c.keys.spec(v), spec)}, nil
}

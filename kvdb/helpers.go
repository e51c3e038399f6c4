package kvdb

import (
	"bytes"
	"context"
	"fmt"
)

// Put writes key unconditionally, detaching it from any lease, and returns the
// revision of the change.
func Put(ctx context.Context, s Store, key string, value []byte) (Revision, error) {
	return put(ctx, s, nil, key, value, 0)
}

// PutLeased writes key unconditionally and attaches it to lease: the store
// deletes the key when the lease ends.
func PutLeased(ctx context.Context, s Store, key string, value []byte, lease LeaseID) (Revision, error) {
	return put(ctx, s, nil, key, value, lease)
}

// Create writes key if it does not exist; ErrConflict if it does.
func Create(ctx context.Context, s Store, key string, value []byte) (Revision, error) {
	return put(ctx, s, []Cmp{{Key: key, Target: CmpAbsent}}, key, value, 0)
}

// CompareAndSwap writes key if its last change is the one at mod (0: the key
// is absent); ErrConflict if it is not. The new value has no lease.
func CompareAndSwap(ctx context.Context, s Store, key string, mod Revision, value []byte) (Revision, error) {
	return put(ctx, s, []Cmp{{Key: key, Target: CmpMod, Revision: mod}}, key, value, 0)
}

func put(ctx context.Context, s Store, cond []Cmp, key string, value []byte, lease LeaseID) (Revision, error) {
	res, err := s.Txn(ctx, Txn{If: cond, Then: []Op{{Kind: OpPut, Key: key, Value: value, Lease: lease}}})
	if err != nil {
		return 0, err
	}
	if !res.Succeeded {
		return 0, fmt.Errorf("%w: key %q", ErrConflict, key)
	}
	return res.Revision, nil
}

// Delete removes key; ErrNotFound if it does not exist.
func Delete(ctx context.Context, s Store, key string) error {
	res, err := s.Txn(ctx, Txn{
		If:   []Cmp{{Key: key, Target: CmpExists}},
		Then: []Op{{Kind: OpDelete, Key: key}},
	})
	if err != nil {
		return err
	}
	if !res.Succeeded {
		return fmt.Errorf("%w: %q", ErrNotFound, key)
	}
	return nil
}

// CompareAndDelete removes key if its last change is the one at mod, which is
// not 0; ErrConflict if it is not.
func CompareAndDelete(ctx context.Context, s Store, key string, mod Revision) error {
	if mod == 0 {
		return fmt.Errorf("%w: compare-and-delete of %q with revision 0", ErrInvalid, key)
	}
	res, err := s.Txn(ctx, Txn{
		If:   []Cmp{{Key: key, Target: CmpMod, Revision: mod}},
		Then: []Op{{Kind: OpDelete, Key: key}},
	})
	if err != nil {
		return err
	}
	if !res.Succeeded {
		return fmt.Errorf("%w: key %q", ErrConflict, key)
	}
	return nil
}

// Clone returns kv with a Value of its own.
func (kv KV) Clone() KV {
	kv.Value = bytes.Clone(kv.Value)
	return kv
}

// ReadOnly tells whether neither part of t changes anything.
func (t Txn) ReadOnly() bool {
	for _, part := range [][]Op{t.Then, t.Else} {
		for _, op := range part {
			if op.Kind != OpGet {
				return false
			}
		}
	}
	return true
}

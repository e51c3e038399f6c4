package kvdb

import (
	"fmt"
	"time"
	"unicode/utf8"
)

// Limits that every store keeps; beyond them a call fails with ErrInvalid and changes nothing.
const (
	// MaxKey is the longest key, in bytes. Keys are valid UTF-8.
	MaxKey = 1 << 10

	// MaxTxn bounds the sum of all keys and values of a Txn, in bytes. It is below
	// what one etcd request may hold by default (1.5 MiB).
	MaxTxn = 1 << 20

	// MinTTL is the shortest lease: etcd counts whole seconds and grants none
	// that does not outlast an election.
	MinTTL = 2 * time.Second

	// MaxTTL is the longest lease. A longer one says nothing about liveness.
	MaxTTL = 24 * time.Hour
)

// CheckKey reports ErrInvalid for a key that no store takes.
func CheckKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: empty key", ErrInvalid)
	case len(key) > MaxKey:
		return fmt.Errorf("%w: key of %d bytes, at most %d", ErrInvalid, len(key), MaxKey)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: key %q is not UTF-8", ErrInvalid, key)
	}
	return nil
}

// CheckPrefix reports ErrInvalid for a prefix that no key can start with. The
// empty prefix is that of all keys.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return CheckKey(prefix)
}

// CheckTTL reports ErrInvalid for a ttl outside MinTTL and MaxTTL.
func CheckTTL(ttl time.Duration) error {
	if ttl < MinTTL || ttl > MaxTTL {
		return fmt.Errorf("%w: lease of %v, want %v to %v", ErrInvalid, ttl, MinTTL, MaxTTL)
	}
	return nil
}

// Check reports ErrInvalid for a Txn that no store takes. Stores call it, callers need not.
func (t Txn) Check() error {
	if len(t.If) > MaxTxnOps {
		return fmt.Errorf("%w: %d comparisons, at most %d", ErrInvalid, len(t.If), MaxTxnOps)
	}
	size := 0
	for _, c := range t.If {
		if err := c.check(); err != nil {
			return err
		}
		size += len(c.Key) + len(c.Value)
	}
	for _, part := range [][]Op{t.Then, t.Else} {
		n, err := checkOps(part)
		if err != nil {
			return err
		}
		size += n
	}
	if size > MaxTxn {
		return fmt.Errorf("%w: transaction of %d bytes, at most %d", ErrInvalid, size, MaxTxn)
	}
	return nil
}

func (c Cmp) check() error {
	if err := CheckKey(c.Key); err != nil {
		return err
	}
	switch {
	case c.Target < CmpMod || c.Target > CmpAbsent:
		return fmt.Errorf("%w: comparison of %q with target %d", ErrInvalid, c.Key, c.Target)
	case c.Revision < 0:
		return fmt.Errorf("%w: comparison of %q with revision %d", ErrInvalid, c.Key, c.Revision)
	case len(c.Value) > MaxValue:
		return fmt.Errorf("%w: value of %d bytes for %q, at most %d", ErrInvalid, len(c.Value), c.Key, MaxValue)
	}
	return nil
}

func checkOps(ops []Op) (size int, err error) {
	if len(ops) > MaxTxnOps {
		return 0, fmt.Errorf("%w: %d operations in one part, at most %d", ErrInvalid, len(ops), MaxTxnOps)
	}
	written := make(map[string]struct{}, len(ops))
	for _, op := range ops {
		if err := op.check(); err != nil {
			return 0, err
		}
		size += len(op.Key) + len(op.Value)
		if op.Kind == OpGet {
			continue
		}
		if _, twice := written[op.Key]; twice {
			return 0, fmt.Errorf("%w: key %q is written twice in one part", ErrInvalid, op.Key)
		}
		written[op.Key] = struct{}{}
	}
	return size, nil
}

func (op Op) check() error {
	if err := CheckKey(op.Key); err != nil {
		return err
	}
	switch {
	case op.Kind < OpGet || op.Kind > OpDelete:
		return fmt.Errorf("%w: operation of kind %d on %q", ErrInvalid, op.Kind, op.Key)
	case op.Kind != OpPut && (len(op.Value) != 0 || op.Lease != 0):
		return fmt.Errorf("%w: value or lease in an operation on %q that is no put", ErrInvalid, op.Key)
	case op.Lease < 0:
		return fmt.Errorf("%w: lease %d for %q", ErrInvalid, op.Lease, op.Key)
	case len(op.Value) > MaxValue:
		return fmt.Errorf("%w: value of %d bytes for %q, at most %d", ErrInvalid, len(op.Value), op.Key, MaxValue)
	}
	return nil
}

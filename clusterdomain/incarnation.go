package clusterdomain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/tandem-storage/tandem/kvdb"
)

// Life is the value of IncarnationKey: one life of the kvdb's content.
type Life struct {
	UUID    string `json:"uuid"`
	Counter uint64 `json:"counter"`
	Creator string `json:"created_by"`
	// Former are the lives that imports made this one the successor of, the oldest first: what is known of them is good
	// as far as the configurations bear it out.
	Former []string `json:"former,omitempty"`
}

// maxFormer bounds Life.Former; the oldest are forgotten.
const maxFormer = 64

// ParseLife decodes the value of IncarnationKey.
func ParseLife(kv kvdb.KV) (Life, error) {
	var l Life
	if err := json.Unmarshal(kv.Value, &l); err != nil {
		return Life{}, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	return l, nil
}

// Next is the value of IncarnationKey for the life that follows l, and the other lives.
func (l Life) Next(creator string, others ...string) (Life, []byte, error) {
	n := Life{UUID: uuid.NewString(), Counter: l.Counter + 1, Creator: creator}
	for _, u := range slices.Concat(l.Former, others, []string{l.UUID}) {
		n.Former = append(slices.DeleteFunc(n.Former, func(v string) bool { return v == u }), u)
	}
	n.Former = n.Former[max(0, len(n.Former)-maxFormer):]
	value, err := encode(n)
	return n, value, err
}

// Incarnation returns the id of this life of the kvdb's content, and gives it one if it has none yet.
func Incarnation(ctx context.Context, s kvdb.Store, cluster, creator string) (string, error) {
	id, err := readIncarnation(ctx, s, cluster)
	if !errors.Is(err, kvdb.ErrNotFound) {
		return id, err
	}
	key, first := IncarnationKey(cluster), Life{UUID: uuid.NewString(), Counter: 1, Creator: creator}
	value, err := encode(first)
	if err != nil {
		return "", err
	}
	if _, err := kvdb.Create(ctx, s, key, value); err != nil && !errors.Is(err, kvdb.ErrConflict) {
		return "", fmt.Errorf("create %s: %w", key, err)
	}
	return readIncarnation(ctx, s, cluster)
}

func readIncarnation(ctx context.Context, s kvdb.Store, cluster string) (string, error) {
	key := IncarnationKey(cluster)
	kv, err := s.Get(ctx, key)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	l, err := ParseLife(kv)
	return l.UUID, err
}

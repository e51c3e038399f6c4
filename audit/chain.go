package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// head says where the chain begins and ends.
type head struct {
	First  uint64 `json:"first"`            // the oldest entry that is kept
	Anchor Hash   `json:"anchor"`           // of the entry before First, zero if there was none
	Last   uint64 `json:"last"`             // First-1: the trail is empty
	Hash   Hash   `json:"hash"`             // of Last
	Broken uint64 `json:"broken,omitempty"` // how often a writer found the chain broken and went on behind it
}

// maxSeq is above every number that a trail reaches: what is higher is garbage.
const maxSeq = 1 << 62

func (l *Log) prefix() string             { return "/tandem/" + l.cluster + "/audit/" }
func (l *Log) headKey() string            { return l.prefix() + "head" }
func (l *Log) logPrefix() string          { return l.prefix() + "log/" }
func (l *Log) entryKey(seq uint64) string { return fmt.Sprintf("%s%020d", l.logPrefix(), seq) }
func (l *Log) seqOf(key string) (uint64, bool) {
	digits, ok := strings.CutPrefix(key, l.logPrefix())
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && err == nil && len(digits) == 20 && n > 0 && n < maxSeq
}

func put(key string, v any) (kvdb.Op, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return kvdb.Op{}, fmt.Errorf("%w: %s: %w", ErrBadRecord, key, err)
	}
	return kvdb.Op{Kind: kvdb.OpPut, Key: key, Value: b}, nil
}

func parseHead(value []byte) (*head, error) {
	h := new(head)
	if err := json.Unmarshal(value, h); err != nil {
		return nil, fmt.Errorf("%w: head: %w", ErrBadRecord, err)
	}
	if h.First == 0 || h.Last >= maxSeq || h.First > h.Last+1 {
		return nil, fmt.Errorf("%w: head: entries %d to %d", ErrBadRecord, h.First, h.Last)
	}
	return h, nil
}

func parseEntry(value []byte) (*Entry, error) {
	e := new(Entry)
	if err := json.Unmarshal(value, e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	return e, nil
}

// readHead returns the head and its revision, 0 if there is none. One that is missing, cannot be read or leaves out an entry is made
// anew from the entries that are there.
func (l *Log) readHead(ctx context.Context) (*head, kvdb.Revision, error) {
	for {
		kv, err := l.get(ctx, l.headKey())
		if err != nil {
			return nil, 0, err
		}
		h, err := parseHead(kv.Value)
		if err != nil {
			h, err = l.rebuilt(ctx, kv.Mod != 0)
			return h, kv.Mod, err
		}
		next, err := l.get(ctx, l.entryKey(h.Last+1))
		if err != nil || next.Mod == 0 {
			return h, kv.Mod, err
		}
		again, err := l.get(ctx, l.headKey())
		if err != nil {
			return nil, 0, err
		}
		if again.Mod == kv.Mod {
			broken := h.Broken + 1
			if h, err = l.rebuilt(ctx, true); err == nil {
				h.Broken = broken
			}
			return h, kv.Mod, err
		}
	}
}

// get is the key's value, with the revision 0 if there is none.
func (l *Log) get(ctx context.Context, key string) (kvdb.KV, error) {
	kv, err := l.store.Get(ctx, key)
	if err != nil && !errors.Is(err, kvdb.ErrNotFound) {
		return kvdb.KV{}, fmt.Errorf("read the audit trail: %w", err)
	}
	return kv, nil
}

// rebuilt is a head of the entries that are there.
func (l *Log) rebuilt(ctx context.Context, broken bool) (*head, error) {
	kvs, _, err := l.store.List(ctx, l.logPrefix())
	if err != nil {
		return nil, fmt.Errorf("read the audit trail: %w", err)
	}
	h := &head{First: 1}
	for _, kv := range kvs {
		seq, ok := l.seqOf(kv.Key)
		if !ok {
			continue
		}
		e, err := parseEntry(kv.Value)
		if err != nil {
			e = new(Entry)
		}
		if h.Last == 0 {
			h.First, h.Anchor = seq, e.Prev
		}
		h.Last, h.Hash, broken = seq, e.Hash, true
	}
	if broken {
		h.Broken = 1
	}
	return h, nil
}

// cut moves the beginning of the chain behind its first entry.
func (l *Log) cut(ctx context.Context, h *head) error {
	look, err := l.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpGet, Key: l.entryKey(h.First)}, {Kind: kvdb.OpGet, Key: l.entryKey(h.First + 1)},
	}})
	if err != nil {
		return fmt.Errorf("read the audit trail: %w", err)
	}
	var es [2]*Entry
	for i, kv := range look.Gets {
		es[i] = new(Entry)
		if kv == nil {
			continue
		}
		if e, err := parseEntry(kv.Value); err == nil {
			es[i] = e
		}
	}
	old, next := es[0], es[1]
	if old.Seq != h.First || old.Prev != h.Anchor || old.sum() != old.Hash || next.Prev != old.Hash {
		h.Broken++ // what is wrong with it will not be seen any more
	}
	h.First, h.Anchor = h.First+1, next.Prev
	return nil
}

// Entries returns the entries not older than since (by the clocks of those who made them), in the order of the chain, and how
// many records cannot be read.
func (l *Log) Entries(ctx context.Context, since time.Time) (es []Entry, unreadable int, _ error) {
	kvs, _, err := l.store.List(ctx, l.logPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("read the audit trail: %w", err)
	}
	for _, kv := range kvs {
		switch e, err := parseEntry(kv.Value); {
		case err != nil:
			unreadable++
		case !e.Time.Before(since):
			es = append(es, *e)
		}
	}
	return es, unreadable, nil
}

// Fault is something that is wrong with the trail.
type Fault struct {
	Seq  uint64 // of the entry; 0: the head
	Text string
}

// Report is what Verify found.
type Report struct {
	First, Last uint64 // entries that are to be there; Last is First-1 if there are none
	Hash        Hash   // of Last
	Faults      []Fault
	// Broken is how often a writer found the chain broken and went on behind it; what it was may have been cut off by now.
	Broken uint64
}

// Intact reports whether nothing is wrong.
func (r *Report) Intact() bool { return len(r.Faults) == 0 && r.Broken == 0 }

// Verify goes through the trail as it is at one moment. Errors: those of the store.
func (l *Log) Verify(ctx context.Context) (*Report, error) {
	kvs, _, err := l.store.List(ctx, l.prefix())
	if err != nil {
		return nil, fmt.Errorf("read the audit trail: %w", err)
	}
	v := &verifier{r: &Report{First: 1}}
	for _, kv := range kvs {
		if kv.Key == l.headKey() {
			v.head, err = parseHead(kv.Value)
			if err != nil {
				v.fault(0, "cannot be read: %v", err)
			}
		}
	}
	switch {
	case v.head != nil:
		v.r.First, v.r.Last, v.r.Hash, v.r.Broken = v.head.First, v.head.Last, v.head.Hash, v.head.Broken
		v.next, v.prev, v.known = v.head.First, v.head.Anchor, true
	case len(kvs) > 0 && len(v.r.Faults) == 0:
		v.fault(0, "is missing")
	}
	for _, kv := range kvs {
		if kv.Key == l.headKey() {
			continue
		}
		seq, ok := l.seqOf(kv.Key)
		if !ok {
			v.fault(0, "a record is there that is none of the trail: %q", kv.Key)
			continue
		}
		v.entry(seq, kv.Value)
	}
	v.end()
	return v.r, nil
}

// verifier goes along the chain.
type verifier struct {
	r     *Report
	head  *head
	next  uint64 // that is to come; 0: any
	prev  Hash   // of the one before
	known bool   // prev is
}

func (v *verifier) fault(seq uint64, format string, a ...any) {
	v.r.Faults = append(v.r.Faults, Fault{seq, fmt.Sprintf(format, a...)})
}

func (v *verifier) entry(seq uint64, value []byte) {
	switch {
	case v.head != nil && seq < v.head.First, v.head != nil && seq > v.head.Last:
		v.fault(seq, "is not of the chain, which is of entries %d to %d", v.head.First, v.head.Last)
		return
	case v.next != 0 && seq > v.next:
		v.missing(seq - 1)
	}
	v.next = seq + 1
	e, err := parseEntry(value)
	if err != nil {
		v.fault(seq, "cannot be read: %v", err)
		v.known = false
		return
	}
	follows := !v.known || e.Prev == v.prev
	switch {
	case e.Seq != seq:
		v.fault(seq, "has been moved: it is entry %d", e.Seq)
		v.known = false
		return
	case e.sum() != e.Hash:
		v.fault(seq, "has been changed: its content does not have its hash")
	case !follows && seq == v.r.First:
		v.fault(seq, "has been changed, or the anchor: it does not follow the entry that was cut off before it")
	case !follows:
		v.fault(seq, "does not follow entry %d: one of the two has been changed", seq-1)
	}
	v.prev, v.known = e.Hash, true
}

// missing notes the absence of the entries from next to last.
func (v *verifier) missing(last uint64) {
	if last == v.next {
		v.fault(last, "is missing")
	} else {
		v.fault(v.next, "is missing, and all to %d", last)
	}
	v.known = false
}

func (v *verifier) end() {
	if v.head == nil {
		return
	}
	if v.next <= v.head.Last {
		v.missing(v.head.Last)
		return
	}
	if v.known && v.prev != v.head.Hash {
		v.fault(v.head.Last, "is not the one that the head names: one of the two has been changed")
	}
}

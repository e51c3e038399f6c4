// Package audit keeps the audit trail of a cluster: what operators and arbiters did, when, why, and what came of it.
//
// The trail is a chain in the kvdb. Each entry has the number after the one before and that one's hash, so that an entry that was
// changed, taken out or moved shows (Verify says which). A head record names the first and the last entry; an entry is appended by one
// transaction that compares the head, so that writers on all nodes make one chain. Where an action is itself a transaction on the
// kvdb, the entry is part of it (Stage): neither is there without the other. Every other action is appended when its outcome is
// known (Append).
//
// The trail holds the newest Keep entries. When an older one is cut off, the head keeps its hash, the anchor: what is left is a
// chain from there. A trail that somebody damaged never stops an action: it goes on behind the damage, and the head counts it.
//
// The chain makes changes visible, it does not prevent them: who may write the kvdb at will can make all of it anew. To notice that too,
// keep the hash of the last entry somewhere else.
package audit

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// Keep is how many entries are kept.
const Keep = 2048

// Longest texts of an entry, in bytes; what is longer is cut. Lost is never cut.
const (
	maxName = 256
	maxText = 512
)

// Record is an action, as whoever does it describes it.
type Record struct {
	Actor   string   `json:"actor"`           // who asked: a person, or "node NAME" for what a node did by itself; "" when recorded: see By
	Verb    string   `json:"verb"`            // as in tandemctl: "domain deactivate", "volume delete", ...
	Object  string   `json:"object"`          // domain/NAME, volume/ID, member/NAME, kvdb
	Reason  string   `json:"reason"`          // in the actor's words
	Outcome string   `json:"outcome"`         // what came of it
	Epoch   uint64   `json:"epoch,omitempty"` // of the object after it; 0: it has none
	Lost    []string `json:"lost,omitempty"`  // volumes of which the actor gave up data (I24)
}

// Entry is a Record in the chain.
type Entry struct {
	Seq  uint64    `json:"seq"`  // from 1
	Time time.Time `json:"ts"`   // by the clock of Node; whole milliseconds
	Node string    `json:"node"` // that did it
	Record
	Prev Hash `json:"prev"` // of the entry before, zero for the first
	Hash Hash `json:"hash"`
}

// Hash is the SHA-256 of an entry.
type Hash [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(h) {
		return fmt.Errorf("%w: a hash of %d characters", ErrBadRecord, len(b))
	}
	_, err := hex.Decode(h[:], b)
	return err
}

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// sum is the hash of e: of every field but Hash, each text with its length before it, numbers as 8 bytes, most significant first.
func (e *Entry) sum() Hash {
	b := []byte("tandem audit 1")
	num := func(n uint64) { b = binary.BigEndian.AppendUint64(b, n) }
	text := func(s string) {
		num(uint64(len(s)))
		b = append(b, s...)
	}
	num(e.Seq)
	num(uint64(e.Time.UnixMilli()))
	for _, s := range []string{e.Node, e.Actor, e.Verb, e.Object, e.Reason, e.Outcome} {
		text(s)
	}
	num(e.Epoch)
	for _, s := range e.Lost {
		text(s)
	}
	return sha256.Sum256(append(b, e.Prev[:]...))
}

// ErrBadRecord: a record of the trail cannot be read.
var ErrBadRecord = errors.New("audit: unreadable record")

// Log writes and reads the trail of a cluster. Methods may be called concurrently.
type Log struct {
	store         kvdb.Store
	cluster, node string
	keep          uint64
	now           func() time.Time
	turn          chan struct{} // holds a token while somebody of this process is at the end of the trail
}

// New returns the trail of a cluster; entries say that node made them.
func New(store kvdb.Store, cluster, node string) *Log {
	return &Log{store: store, cluster: cluster, node: node, keep: Keep, now: time.Now, turn: make(chan struct{}, 1)}
}

// whoKey is the key under which a context says who asks.
type whoKey struct{}

type who struct{ actor, reason string }

// By returns a context for what actor asks for, with the reason that he gives. Records that name no actor are of him.
func By(ctx context.Context, actor, reason string) context.Context {
	return context.WithValue(ctx, whoKey{}, who{actor, reason})
}

// signed is r with an actor: the one in ctx (By), or else this node.
func (l *Log) signed(ctx context.Context, r Record) Record {
	if r.Actor != "" {
		return r
	}
	if w, ok := ctx.Value(whoKey{}).(who); ok {
		r.Actor = w.actor
		if r.Reason == "" {
			r.Reason = w.reason
		}
		return r
	}
	r.Actor = "node " + l.node
	return r
}

// Staged are entries on their way into the trail as part of a transaction.
type Staged struct {
	Entry Entry // the last of them
	conds []kvdb.Cmp
	ops   []kvdb.Op
}

// AddTo makes the entries part of t: one comparison, and at most one operation of the part Then, and two for each entry. When t's comparisons do
// not hold, another entry may have come first: Stage again.
func (s *Staged) AddTo(t *kvdb.Txn) {
	t.If = append(t.If, s.conds...)
	t.Then = append(t.Then, s.ops...)
}

// Stage makes the entries that come next, for a transaction that does what the records say. Nothing is written. It must be called again
// for every attempt. A damaged trail is no error. Errors: those of the store.
func (l *Log) Stage(ctx context.Context, rs ...Record) (*Staged, error) {
	h, mod, err := l.readHead(ctx)
	if err != nil {
		return nil, err
	}
	s := &Staged{conds: []kvdb.Cmp{{Key: l.headKey(), Target: kvdb.CmpMod, Revision: mod}}}
	for _, r := range rs {
		if h.Last-h.First+1 >= l.keep {
			if err := l.cut(ctx, h); err != nil {
				return nil, err
			}
			s.ops = append(s.ops, kvdb.Op{Kind: kvdb.OpDelete, Key: l.entryKey(h.First - 1)})
		}
		e := Entry{Seq: h.Last + 1, Time: l.now().UTC().Truncate(time.Millisecond), Node: l.node, Record: l.signed(ctx, r).normal(), Prev: h.Hash}
		e.Hash = e.sum()
		h.Last, h.Hash = e.Seq, e.Hash
		entry, err := put(l.entryKey(e.Seq), e)
		if err != nil {
			return nil, err
		}
		s.ops = append(s.ops, entry)
		s.Entry = e
	}
	end, err := put(l.headKey(), h)
	if err != nil {
		return nil, err
	}
	s.ops = append(s.ops, end)
	return s, nil
}

// turnWait is how long somebody waits for others of this process, who may wait for the store.
const turnWait = time.Second

// takeTurn waits until no other goroutine is about to add to the trail, or until that has taken too long: of those that try at once all but one have to try again,
// each with what it has read for it.
func (l *Log) takeTurn(ctx context.Context) (giveBack func()) {
	t := time.NewTimer(turnWait)
	defer t.Stop()
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn }
	case <-t.C:
	case <-ctx.Done(): // whoever comes to the store finds out
	}
	return func() {}
}

// Txn executes t with entries for what it does as part of it, again as long as only other entries come first. The result is as if it had been that of t alone. Errors: those of the store.
func (l *Log) Txn(ctx context.Context, t kvdb.Txn, rs ...Record) (kvdb.TxnResult, error) {
	defer l.takeTurn(ctx)()
	for {
		s, err := l.Stage(ctx, rs...)
		if err != nil {
			return kvdb.TxnResult{}, err
		}
		with := kvdb.Txn{If: slices.Clone(t.If), Then: slices.Clone(t.Then), Else: append(slices.Clone(t.Else), kvdb.Op{Kind: kvdb.OpGet, Key: l.headKey()})}
		s.AddTo(&with)
		res, err := l.store.Txn(ctx, with)
		if err != nil || res.Succeeded {
			return res, err
		}
		head := res.Gets[len(res.Gets)-1]
		res.Gets = res.Gets[:len(res.Gets)-1]
		if now := modOf(head); now == s.conds[0].Revision {
			return res, nil // so it was something of t that did not hold
		}
		if err := ctx.Err(); err != nil {
			return kvdb.TxnResult{}, err
		}
	}
}

func modOf(kv *kvdb.KV) kvdb.Revision {
	if kv == nil {
		return 0
	}
	return kv.Mod
}

// normal is r as it can be stored.
func (r Record) normal() Record {
	for _, s := range []*string{&r.Actor, &r.Verb, &r.Object} {
		*s = bounded(*s, maxName)
	}
	for _, s := range []*string{&r.Reason, &r.Outcome} {
		*s = bounded(*s, maxText)
	}
	lost := r.Lost
	r.Lost = nil
	for _, s := range lost {
		r.Lost = append(r.Lost, bounded(s, maxName))
	}
	return r
}

// bounded is s as valid UTF-8 of at most n bytes.
func bounded(s string, n int) string {
	if len(s) > n {
		s = s[:n-len("...")] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// NoteTimeout bounds Note.
const NoteTimeout = 2 * time.Second

// Note is Append for an action that has been done: it waits at most NoteTimeout, also when ctx has ended. Whoever calls logs
// the error, and tells the actor of his success.
func (l *Log) Note(ctx context.Context, r Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), NoteTimeout)
	defer cancel()
	_, err := l.Append(ctx, r)
	return err
}

// appendPause is between two attempts of Append while the store does not answer.
const appendPause = 50 * time.Millisecond

// Append puts r into the trail and returns its entry. It goes on trying until ctx ends: bound it. An error then means that r
// may be in the trail or come into it later. It is there once, unless so many others came that it was cut off while the store had not told
// whether it had taken it: then it comes again.
func (l *Log) Append(ctx context.Context, r Record) (Entry, error) {
	var sent []Entry // of attempts that may have taken effect, or will
	for {
		e, done, err := l.attempt(ctx, r, &sent)
		switch {
		case done:
			return e, nil
		case errors.Is(err, kvdb.ErrInvalid), errors.Is(err, kvdb.ErrClosed):
			return Entry{}, fmt.Errorf("audit: append: %w", err)
		case err == nil:
			err = ctx.Err()
		}
		if err != nil && !kvdb.Pause(ctx, appendPause) {
			return Entry{}, fmt.Errorf("audit: append: %w", err)
		}
	}
}

// attempt tries once. Neither done nor an error: another entry came first.
func (l *Log) attempt(ctx context.Context, r Record, sent *[]Entry) (_ Entry, done bool, _ error) {
	defer l.takeTurn(ctx)()
	s, err := l.Stage(ctx, r)
	if err != nil {
		return Entry{}, false, err
	}
	// After the head was read: what takes effect later than this moves the head.
	for _, e := range *sent {
		kv, err := l.store.Get(ctx, l.entryKey(e.Seq))
		if err != nil && !errors.Is(err, kvdb.ErrNotFound) {
			return Entry{}, false, err
		}
		if have, err := parseEntry(kv.Value); err == nil && have.Hash == e.Hash {
			return e, true, nil
		}
	}
	var t kvdb.Txn
	s.AddTo(&t)
	res, err := l.store.Txn(ctx, t)
	if err != nil && !errors.Is(err, kvdb.ErrNoLeader) && !errors.Is(err, kvdb.ErrInvalid) {
		*sent = append(*sent, s.Entry)
	}
	return s.Entry, err == nil && res.Succeeded, err
}

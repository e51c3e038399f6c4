package raftkv

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/kvstate"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

func sampleTxn() kvdb.Txn {
	return kvdb.Txn{
		If: []kvdb.Cmp{
			{Key: "a", Target: kvdb.CmpMod, Revision: 7},
			{Key: "b", Target: kvdb.CmpValue, Value: []byte{0, 1}},
			{Key: "c", Target: kvdb.CmpExists},
			{Key: "d", Target: kvdb.CmpAbsent},
		},
		Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: "a", Value: []byte("v"), Lease: 1 << 62}, {Kind: kvdb.OpGet, Key: "b"}},
		Else: []kvdb.Op{{Kind: kvdb.OpDelete, Key: "c"}},
	}
}

func TestTxnThroughProto(t *testing.T) {
	want := sampleTxn()
	if got := txnFromProto(txnToProto(want)); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	res := kvdb.TxnResult{Succeeded: true, Revision: 3, Gets: []*kvdb.KV{nil, {Key: "k", Value: []byte("v"), Created: 1, Mod: 2, Lease: 3}}}
	if got := resultFromProto(resultToProto(res)); !reflect.DeepEqual(got, res) {
		t.Errorf("got %+v, want %+v", got, res)
	}
}

func TestFailuresThroughProto(t *testing.T) {
	if fromFailure(toFailure(nil)) != nil {
		t.Error("success became a failure")
	}
	for _, sentinel := range []error{
		kvdb.ErrNoLeader, kvdb.ErrUnavailable, kvdb.ErrLeaseGone, kvdb.ErrInvalid, kvdb.ErrCompacted, ErrMemberExists, ErrMemberNotFound,
	} {
		if err := fromFailure(toFailure(fmt.Errorf("%w: because", sentinel))); !errors.Is(err, sentinel) {
			t.Errorf("%v became %v", sentinel, err)
		}
	}
	for _, unknown := range []error{errors.New("disk on fire"), raft.ErrLeadershipLost} {
		if err := fromFailure(toFailure(unknown)); !errors.Is(err, kvdb.ErrUnavailable) {
			t.Errorf("%v became %v, want an unknown outcome", unknown, err)
		}
	}
	if err := fromFailure(&kvdbpb.Failure{Code: 99}); !errors.Is(err, kvdb.ErrUnavailable) {
		t.Errorf("a failure of a later version became %v, want an unknown outcome", err)
	}
}

func TestFromRaft(t *testing.T) {
	for _, err := range []error{raft.ErrNotLeader, raft.ErrLeadershipTransferInProgress, raft.ErrEnqueueTimeout} {
		if got := fromRaft(err); !errors.Is(got, kvdb.ErrNoLeader) || errors.Is(got, kvdb.ErrUnavailable) {
			t.Errorf("%v became %v, want a definite refusal", err, got)
		}
	}
	for _, err := range []error{raft.ErrLeadershipLost, raft.ErrRaftShutdown, raft.ErrAbortedByRestore, errors.New("disk full")} {
		if got := fromRaft(err); !errors.Is(got, kvdb.ErrUnavailable) || errors.Is(got, kvdb.ErrNoLeader) {
			t.Errorf("%v became %v, want an unknown outcome", err, got)
		}
	}
}

func TestDamagedCommand(t *testing.T) {
	sound, err := encodeCommand(&kvdbpb.Command{Change: &kvdbpb.Command_Txn{Txn: txnToProto(sampleTxn())}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeCommand(sound); err != nil {
		t.Fatal(err)
	}
	for i := range sound {
		damaged := bytes.Clone(sound)
		damaged[i] ^= 1
		if _, err := decodeCommand(damaged); err == nil {
			t.Errorf("byte %d damaged: no error", i)
		}
		if _, err := decodeCommand(sound[:i]); err == nil {
			t.Errorf("cut at %d: no error", i)
		}
	}
}

// A member must not go on without an entry that it cannot read.
func TestUnreadableEntryStopsMember(t *testing.T) {
	empty, err := encodeCommand(&kvdbpb.Command{})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"damaged": []byte("damaged"), "of a later version": empty} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("entry %s was applied", name)
				}
			}()
			f := &fsm{state: kvstate.New(1)}
			f.Apply(&raft.Log{Index: 1, Data: data})
		}()
	}
}

func sampleState(t *testing.T) *fsm {
	t.Helper()
	f := &fsm{state: kvstate.New(100)}
	if err := errors.Join(f.state.Grant(5, 3*time.Second), f.state.Grant(6, time.Hour)); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		_, err := f.state.Txn(kvdb.Txn{Then: []kvdb.Op{{
			Kind: kvdb.OpPut, Key: fmt.Sprint("k", i%15), Value: bytes.Repeat([]byte{byte(i)}, i), Lease: kvdb.LeaseID(5 * (i % 2)),
		}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	f.applied.Store(42)
	return f
}

func TestSnapshot(t *testing.T) {
	f := sampleState(t)
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	before, rev := f.state.List("")
	if err := f.state.EndLease(5); err != nil { // later changes are not in it
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := snap.(fsmSnapshot).write(&file); err != nil {
		t.Fatal(err)
	}

	restored := &fsm{state: kvstate.New(100)}
	if err := restored.Restore(nopCloser{bytes.NewReader(file.Bytes())}); err != nil {
		t.Fatal(err)
	}
	after, gotRev := restored.state.List("")
	if gotRev != rev || !reflect.DeepEqual(after, before) || restored.applied.Load() != 42 {
		t.Errorf("restored revision %d, applied %d, %v, want %d, 42, %v", gotRev, restored.applied.Load(), after, rev, before)
	}
	if leases := restored.state.Leases(); len(leases) != 2 || leases[5] != 3*time.Second || leases[6] != time.Hour {
		t.Errorf("restored leases %v", leases)
	}
	if err := restored.state.EndLease(5); err != nil {
		t.Fatal(err)
	}
	ended, _ := restored.state.List("")
	if want, _ := f.state.List(""); !reflect.DeepEqual(ended, want) {
		t.Errorf("after the end of a lease %v, want %v", ended, want)
	}
}

func TestDamagedSnapshot(t *testing.T) {
	snap, err := sampleState(t).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := snap.(fsmSnapshot).write(&file); err != nil {
		t.Fatal(err)
	}
	sound := file.Bytes()
	for i := range sound {
		for _, damaged := range [][]byte{sound[:i], flip(sound, i, 1), flip(sound, i, 0x80)} {
			f := &fsm{state: kvstate.New(1)}
			if err := f.Restore(nopCloser{bytes.NewReader(damaged)}); err == nil {
				t.Errorf("damaged at byte %d of %d: restored", i, len(sound))
			}
			if rev := f.state.Revision(); rev != 1 {
				t.Fatalf("a refused snapshot left revision %d", rev)
			}
		}
	}
}

func flip(b []byte, i int, mask byte) []byte {
	b = bytes.Clone(b)
	b[i] ^= mask
	return b
}

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }

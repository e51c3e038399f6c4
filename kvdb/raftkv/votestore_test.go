package raftkv

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tandem-storage/tandem/kvdb/internal/kvstate"
)

// openStable opens a stable store on disk, which close leaves as a crash would.
func openStable(t *testing.T, dir string) (raft.StableStore, func()) {
	t.Helper()
	s, err := openLogStore(filepath.Join(dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	return s, func() {
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
}

func wantVote(t *testing.T, s raft.StableStore, term uint64, candidate string) {
	t.Helper()
	gotTerm, err := s.GetUint64(keyLastVoteTerm)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(keyLastVoteCand)
	if err != nil {
		t.Fatal(err)
	}
	if gotTerm != term || string(got) != candidate || (candidate == "") != (got == nil) {
		t.Errorf("vote is term %d for %q, want term %d for %q", gotTerm, got, term, candidate)
	}
}

func TestVoteAfterCrashBetweenItsSets(t *testing.T) {
	dir := t.TempDir()
	do := func(f func(voteStore) error) {
		t.Helper()
		disk, crash := openStable(t, dir)
		defer crash()
		if err := f(voteStore{disk}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(term uint64, candidate string) {
		t.Helper()
		disk, crash := openStable(t, dir)
		defer crash()
		wantVote(t, voteStore{disk}, term, candidate)
	}
	check(0, "")
	do(func(s voteStore) error { return s.SetUint64(keyLastVoteTerm, 4) })
	check(4, "")
	do(func(s voteStore) error { return s.Set(keyLastVoteCand, []byte("a")) })
	check(4, "a")
	do(func(s voteStore) error { return s.SetUint64(keyLastVoteTerm, 5) }) // and no more
	check(5, "")
	do(func(s voteStore) error { return s.Set(keyLastVoteCand, []byte("b")) })
	check(5, "b")

	// Other keys go through.
	do(func(s voteStore) error {
		return errors.Join(s.SetUint64([]byte("CurrentTerm"), 9), s.Set([]byte("other"), []byte("x")))
	})
	disk, crash := openStable(t, dir)
	defer crash()
	if term, err := disk.GetUint64([]byte("CurrentTerm")); err != nil || term != 9 {
		t.Errorf("current term %d, %v", term, err)
	}
}

func TestVoteDamaged(t *testing.T) {
	disk := raft.NewInmemStore()
	s := voteStore{disk}
	if err := errors.Join(s.SetUint64(keyLastVoteTerm, 4), s.Set(keyLastVoteCand, []byte("a"))); err != nil {
		t.Fatal(err)
	}
	sound, err := disk.Get(keyVote)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sound {
		damaged := append([]byte(nil), sound...)
		damaged[i] ^= 0x10
		if err := disk.Set(keyVote, damaged); err != nil {
			t.Fatal(err)
		}
		if _, err := s.GetUint64(keyLastVoteTerm); err == nil {
			t.Errorf("byte %d damaged: no error", i)
		}
		if _, err := s.Get(keyLastVoteCand); err == nil {
			t.Errorf("byte %d damaged: no error", i)
		}
	}
}

// Why there is a voteStore: raft itself, restarted after the crash between the
// two sets, grants the new term to a candidate whose log is behind.
func TestStaleCandidateAfterCrashBetweenSets(t *testing.T) {
	for _, test := range []struct {
		name    string
		wrap    func(raft.StableStore) raft.StableStore
		granted bool
	}{
		{"voteStore", func(s raft.StableStore) raft.StableStore { return voteStore{s} }, false},
		{"raft alone", func(s raft.StableStore) raft.StableStore { return s }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			disk := raft.NewInmemStore()
			stable := test.wrap(disk)
			candidate, stale := raft.NewInmemTransport("stale")
			voter, voterTransport := raft.NewInmemTransport("voter")
			stale.Connect(voter, voterTransport)
			if err := errors.Join(
				disk.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{
					Servers: []raft.Server{{ID: "voter", Address: voter}, {ID: "stale", Address: candidate}},
				})}),
				disk.StoreLog(&raft.Log{Index: 2, Term: 4, Type: raft.LogNoop}), // which the candidate lacks
				stable.SetUint64([]byte("CurrentTerm"), 5),
				stable.SetUint64(keyLastVoteTerm, 3), // a vote of long ago
				stable.Set(keyLastVoteCand, []byte(candidate)),
				stable.SetUint64(keyLastVoteTerm, 5), // the vote of now; crash before its candidate
			); err != nil {
				t.Fatal(err)
			}
			config := raft.DefaultConfig()
			config.LocalID = "voter"
			config.HeartbeatTimeout, config.ElectionTimeout = time.Hour, time.Hour
			config.Logger = newHCLog(testLogger(t))
			r, err := raft.NewRaft(config, &fsm{state: kvstate.New(1)}, disk, stable, raft.NewInmemSnapshotStore(), voterTransport)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Shutdown().Error() }()

			var reply raft.RequestVoteResponse
			err = stale.RequestVote("voter", voter, &raft.RequestVoteRequest{
				RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("stale"), Addr: []byte(candidate)},
				Term:      5, LastLogIndex: 1, LastLogTerm: 1,
			}, &reply)
			if err != nil {
				t.Fatal(err)
			}
			if reply.Granted != test.granted {
				t.Errorf("vote granted: %v, want %v", reply.Granted, test.granted)
			}
		})
	}
}

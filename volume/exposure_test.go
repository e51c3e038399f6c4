package volume

import (
	"slices"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// resync is the begin of the resync of the replica in the domain.
func resync(cfg *replication.Config, d replication.DomainID) *replication.Config {
	n := nextConfig(cfg, replication.PhaseActive, "resync")
	setState(n, member(cfg, d), replication.MemberSyncing)
	return n
}

// rejoin is the join of the replica in the domain.
func rejoin(cfg *replication.Config, d replication.DomainID) *replication.Config {
	n := nextConfig(cfg, replication.PhaseActive, "join")
	r := member(cfg, d)
	n.ISR = append(n.ISR, r)
	setState(n, r, replication.MemberInSync)
	return n
}

func exposureOf(t *testing.T, c *Configs, id replication.VolumeID) *Exposure {
	t.Helper()
	x, err := c.Exposure(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// Each time without a replica is in the ledger once, from the transaction that evicted it to the one in which it joined, also when
// their answers are lost; what is too old is summed up.
func TestExposureLedger(t *testing.T) {
	w, c, cfg, rev := attached(t)
	rng := seeded(t)
	f := &filter{Store: w.store, lose: func() (bool, bool) { return rng.IntN(8) == 0, rng.IntN(8) == 0 }}
	c.store = f
	c.Resynced = func(v replication.VolumeID, r replication.ReplicaID) int64 {
		if v == cfg.Volume && r == member(cfg, "b") {
			return 4096
		}
		return 1 << 40
	}
	const times = maxIntervals + 7
	swap := func(next *replication.Config) {
		t.Helper()
		var err error
		if rev, err = c.CompareAndSwap(t.Context(), rev, next, "a"); err != nil {
			t.Fatal(err)
		}
		cfg = next
	}
	for n := range times {
		swap(evict(cfg, "b"))
		from := cfg.Epoch
		x := exposureOf(t, c, cfg.Volume)
		if o := x.Open; o == nil || o.FromEpoch != from || o.Cause != "evict" || !slices.Equal(o.Without, []string{"b"}) || o.Missing[0].Node != "n-b" || o.InSync != 1 {
			t.Fatalf("%+v", x.Open)
		}
		if x.At(time.Now()) != x.Open || x.At(x.Open.From) != x.Open {
			t.Error("the interval that goes on is not the one at this time")
		}
		swap(resync(cfg, "b"))
		swap(rejoin(cfg, "b"))
		x = exposureOf(t, c, cfg.Volume)
		last := x.Past[len(x.Past)-1]
		if x.Open != nil || last.FromEpoch != from || last.ToEpoch != from+2 || last.End != "join" || last.Resynced != 4096 || last.To.Before(last.From) {
			t.Fatalf("%+v", x)
		}
		if s := x.Total(time.Now()); s.Count != n+1 || s.Resynced != int64(n+1)*4096 || len(x.Past) != min(n+1, maxIntervals) {
			t.Fatalf("after %d: %+v, %d kept", n+1, s, len(x.Past))
		}
	}
	if kvs, _, err := w.store.List(t.Context(), c.keys.root+"exposure/"); err != nil || len(kvs) != 1 {
		t.Error(kvs, err)
	}
}

// A clock that went back makes no negative time, and no gap between two intervals that follow each other.
func TestExposureTimes(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0).UTC() }
	bytes := func(r replication.ReplicaID) int64 { return int64(r[0]) }
	three := firstConfig(&Spec{Request: Request{Size: gib}, Placed: []Placement{
		{Replica: replication.ReplicaID{1}, Node: "n-a", Domain: "a"}, {Replica: replication.ReplicaID{2}, Node: "n-b", Domain: "b"},
		{Replica: replication.ReplicaID{3}, Node: "n-b2", Domain: "b"},
	}})
	x := new(Exposure)
	one := nextConfig(three, replication.PhaseActive, "first goes")
	one.ISR = one.ISR[:2]
	x.change(one, at(0), bytes)
	if x.Open == nil || len(x.Open.Without) != 0 {
		t.Fatalf("%+v", x.Open)
	}
	two := nextConfig(one, replication.PhaseActive, "second goes")
	two.ISR = two.ISR[:1]
	x.change(two, at(10), bytes)
	same := nextConfig(two, replication.PhaseActive, "takeover")
	x.change(same, at(15), bytes)
	all := three.Clone()
	all.History = append(all.History, replication.EpochRecord{Cause: "back"})
	x.change(all, at(5), bytes)
	if x.Open != nil || len(x.Past) != 2 || x.Past[0].Duration(at(99)) != 10*time.Second || x.Past[1].Duration(at(99)) != 0 || x.Past[1].Cause != "second goes" ||
		!slices.Equal(x.Past[1].Without, []string{"b"}) || !x.Past[1].To.Equal(x.Past[1].From) || x.Past[0].Resynced != 0 || x.Past[1].Resynced != 2+3 {
		t.Errorf("%+v", x)
	}
	if i := x.At(at(3)); i == nil || i.Cause != "first goes" || x.At(at(20)) != nil || x.At(at(-1)) != nil {
		t.Errorf("%+v", i)
	}
}

// What is out of sync since before there was a ledger is shown with no beginning, and closed; a ledger of garbage stops no change.
func TestExposureWithoutLedger(t *testing.T) {
	w, c, cfg, rev := attached(t)
	swap := func(next *replication.Config) {
		t.Helper()
		var err error
		if rev, err = c.CompareAndSwap(t.Context(), rev, next, "a"); err != nil {
			t.Fatal(err)
		}
		cfg = next
	}
	swap(evict(cfg, "b"))
	if err := kvdb.Delete(t.Context(), w.store, c.keys.exposure(cfg.Volume)); err != nil {
		t.Fatal(err)
	}
	s := NewServer(w.catalogue(w.store), ServerOptions{Node: "n-a", Runtime: runtime{c, new(Verify)}, Orphans: func() []LocalReplica { return nil }})
	r, err := s.GetExposure(t.Context(), &volumepb.GetExposureRequest{Volume: "v"})
	if err != nil || r.Exposure.Open == nil || r.Exposure.Open.FromUnixMs != 0 || r.Exposure.Open.LastedMs != 0 || r.Exposure.Open.ResyncedBytes != 2 {
		t.Errorf("%v %v", r, err)
	}
	swap(resync(cfg, "b"))
	swap(rejoin(cfg, "b"))
	if x := exposureOf(t, c, cfg.Volume); x.Open != nil || len(x.Past) != 1 || !x.Past[0].From.IsZero() || x.Past[0].FromEpoch == 0 {
		t.Errorf("%+v", x)
	}
	if _, err := kvdb.Put(t.Context(), w.store, c.keys.exposure(cfg.Volume), []byte("{\"open\":7}")); err != nil {
		t.Fatal(err)
	}
	_, err = c.Exposure(t.Context(), cfg.Volume)
	wantErr(t, err, ErrBadRecord)
	if r, err := s.InspectVolume(t.Context(), &volumepb.InspectVolumeRequest{Volume: "v"}); err != nil || r.Exposure != nil {
		t.Error(r, err)
	}
	swap(evict(cfg, "b"))
	if x := exposureOf(t, c, cfg.Volume); x.Open == nil || len(x.Past) != 0 {
		t.Errorf("%+v", x)
	}
	swap(detach(cfg))
	if err := w.catalogue(w.store).Delete(t.Context(), cfg.Volume); err != nil {
		t.Fatal(err)
	}
	w.settle("n-a", "n-b")
	if kvs, _, err := w.store.List(t.Context(), c.keys.root+"exposure/"); err != nil || len(kvs) != 0 {
		t.Error("the ledger of a volume that is gone:", kvs, err)
	}
}

package volume

import (
	"errors"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// receipts are those of the volume, as a report has them.
func receipts(t *testing.T, c *Configs, id replication.VolumeID) []clusterdomain.Receipt {
	t.Helper()
	x := exposureOf(t, c, id)
	var rs []clusterdomain.Receipt
	for _, r := range x.Receipts {
		rs = append(rs, x.follow(r))
	}
	return rs
}

// A volume that is taken from a coordinator that has not detached has a receipt: who had it and who has it, by whose order its domain was
// out of service, what the replicas said, whether anything can be missing, and what the return of the other side took. One that was
// detached, that goes on under the same attachment, or that was handed over has none.
func TestReceipts(t *testing.T) {
	w, c, cfg, rev := attached(t)
	rng := seeded(t)
	swap := func(next *replication.Config, d replication.DomainID) {
		t.Helper()
		var err error
		if rev, err = c.CompareAndSwapFrom(t.Context(), cfg, rev, next, d); err != nil { // as who has the configuration that is replaced
			t.Fatal(err)
		}
		cfg = next
	}
	resume := elect(cfg, "a")
	resume.Coord.AttachID = cfg.Coord.AttachID
	swap(resume, "a")
	swap(activate(cfg), "a")
	if rs := receipts(t, c, cfg.Volume); len(rs) != 0 {
		t.Fatalf("an attachment that was resumed, and one after a detach: %+v", rs)
	}
	a, b := member(cfg, "a"), member(cfg, "b")
	c.Resynced = func(replication.VolumeID, replication.ReplicaID) int64 { return 4096 }
	c.Sealed = func(replication.VolumeID) map[replication.ReplicaID]Sealed {
		return map[replication.ReplicaID]Sealed{b: {Applied: replication.Position{Term: 5, Seq: 77}}}
	}
	was := *cfg.Coord
	before := cfg.Epoch
	op, err := put(clusterdomain.DomainKey("c", "a"), clusterdomain.Domain{Name: "a", State: clusterdomain.Fenced, Epoch: 4, Actor: "kim", Reason: "dark"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Txn(t.Context(), kvdb.Txn{Then: []kvdb.Op{op}}); err != nil {
		t.Fatal(err)
	}
	c.store = &filter{Store: w.store, lose: func() (bool, bool) { return rng.IntN(3) == 0, rng.IntN(3) == 0 }}
	swap(elect(cfg, "b"), "b") // comes to nothing
	swap(elect(cfg, "b"), "b")
	if kept, why := receipts(t, c, cfg.Volume)[0].Kept(); kept || !strings.Contains(why, "not served yet") {
		t.Error(kept, why)
	}
	next := activate(cfg)
	next.ISR = []replication.ReplicaID{b}
	setState(next, a, replication.MemberStale)
	swap(next, "b")
	rs := receipts(t, c, cfg.Volume)
	if len(rs) != 1 {
		t.Fatalf("%+v", rs)
	}
	r := rs[0]
	if r.From.ID != was.AttachID.String() || r.From.Node != "n-a" || r.To.ID != cfg.Coord.AttachID.String() || r.To.Node != "n-b" || r.Before != uint64(before) || r.After != uint64(cfg.Epoch) ||
		r.Attempts != 2 || r.Served.Before(r.Taken) || r.Exposed != nil || !r.Returned.IsZero() {
		t.Errorf("%+v", r)
	}
	if f := r.Fence; f == nil || f.State != clusterdomain.Fenced || f.Actor != "kim" || f.Reason != "dark" || f.Failover != 0 {
		t.Errorf("%+v", f)
	}
	if kept, why := r.Kept(); !kept || !strings.Contains(why, "n-b") || strings.Contains(why, "n-a") {
		t.Error(kept, why)
	}
	for _, p := range r.Replicas {
		if on := p.ID == b.String(); !p.Before || p.After != on || p.Sealed != on || on && (p.Term != 5 || p.Seq != 77) {
			t.Errorf("%+v", p)
		}
	}
	swap(resync(cfg, "a"), "b")
	swap(rejoin(cfg, "a"), "b")
	if r := receipts(t, c, cfg.Volume)[0]; r.Returned.Before(r.Served) || r.Returned.IsZero() || r.ReturnedBytes != 4096 {
		t.Errorf("after the return: %+v", r)
	}

	// Exposed at the time, and all that was left had lost power.
	swap(evict(cfg, "a"), "b")
	exposed := cfg.Epoch
	c.Sealed = func(replication.VolumeID) map[replication.ReplicaID]Sealed {
		return map[replication.ReplicaID]Sealed{b: {Lossy: true}}
	}
	swap(elect(cfg, "b"), "b")
	swap(activate(cfg), "b")
	rs = receipts(t, c, cfg.Volume)
	if x := rs[1].Exposed; x == nil || x.Epoch != uint64(exposed) || x.Since.IsZero() || len(x.Without) != 1 || x.Without[0] != "a" {
		t.Errorf("%+v", x)
	}
	if kept, why := rs[1].Kept(); kept || !strings.Contains(why, "lost power") {
		t.Error(kept, why)
	}
	for range maxReceipts + 3 {
		swap(elect(cfg, "b"), "b")
		swap(activate(cfg), "b")
	}
	rs = receipts(t, c, cfg.Volume)
	if len(rs) != maxReceipts || rs[maxReceipts-1].After != uint64(cfg.Epoch) {
		t.Errorf("%d are kept, the last one is %+v", len(rs), rs[len(rs)-1])
	}
	s := NewServer(w.catalogue(w.store), ServerOptions{Node: "n-b", Runtime: runtime{c, new(Verify)}, Orphans: func() []LocalReplica { return nil }})
	if x, err := s.GetExposure(t.Context(), &volumepb.GetExposureRequest{Volume: "v"}); err != nil || len(x.Receipts) != maxReceipts || x.Receipts[0].To.Node != "n-b" {
		t.Error(x, err)
	}
	swap(detach(cfg), "b")
	swap(elect(cfg, "b"), "b")
	swap(activate(cfg), "b")
	if again := receipts(t, c, cfg.Volume); again[len(again)-1].After != rs[len(rs)-1].After {
		t.Errorf("a receipt of an attach after a detach: %+v", again[len(again)-1])
	}
}

// The report of a failover finds the receipt by the failover that its fence names.
func TestReceiptOfAFailover(t *testing.T) {
	w, c, cfg, _ := attached(t)
	x := &Exposure{Receipts: []clusterdomain.Receipt{{After: 3}, {After: 7, Fence: &clusterdomain.FenceNote{Failover: 2}}}}
	op, err := put(c.keys.exposure(cfg.Volume), x)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Txn(t.Context(), kvdb.Txn{Then: []kvdb.Op{op}}); err != nil {
		t.Fatal(err)
	}
	v := NewDomainView(c)
	if r, err := v.Receipt(t.Context(), cfg.Volume.String(), 2); err != nil || r == nil || r.After != 7 {
		t.Error(r, err)
	}
	if r, err := v.Receipt(t.Context(), cfg.Volume.String(), 3); err != nil || r != nil {
		t.Error(r, err)
	}
}

// A verify that began after all replicas were in sync again stands in the receipt, and one that began before does not. It outlives the
// attachment, not the volume.
func TestReceiptVerified(t *testing.T) {
	_, c, cfg, rev := attached(t)
	swap := func(next *replication.Config) {
		t.Helper()
		var err error
		if rev, err = c.CompareAndSwap(t.Context(), rev, next, "b"); err != nil {
			t.Fatal(err)
		}
		cfg = next
	}
	swap(elect(cfg, "b"))
	next := activate(cfg)
	next.ISR = []replication.ReplicaID{member(cfg, "b")}
	setState(next, member(cfg, "a"), replication.MemberStale)
	swap(next)
	early := &clusterdomain.Verified{From: uint64(cfg.Epoch), Bytes: 4096}
	if err := c.Verified(t.Context(), cfg.Volume, early); err != nil {
		t.Fatal(err)
	}
	swap(resync(cfg, "a"))
	swap(rejoin(cfg, "a"))
	if r := receipts(t, c, cfg.Volume)[0]; r.Returned.IsZero() || r.Verified != nil {
		t.Errorf("a verify from before the return: %+v", r.Verified)
	}
	sides := []clusterdomain.VerifiedSide{{Node: "n-a", Digest: "aa"}, {Node: "n-b", Digest: "aa"}}
	if err := c.Verified(t.Context(), cfg.Volume, &clusterdomain.Verified{From: uint64(cfg.Epoch), Bytes: 8192, Differs: 1, Sides: sides}); err != nil {
		t.Fatal(err)
	}
	if r := receipts(t, c, cfg.Volume)[0]; r.Verified == nil || r.Verified.Bytes != 8192 || !r.Verified.Equal() || clusterdomain.ReceiptPB(&r).Verified.DiffersBlocks != 1 {
		t.Errorf("after a verify: %+v", r.Verified)
	}
	for _, s := range [][]clusterdomain.VerifiedSide{nil, sides[:1], {sides[0], {Digest: "ab"}}, {sides[0], {}}, {{}, {}}} {
		if v := (clusterdomain.Verified{Sides: s}); v.Equal() {
			t.Errorf("equal: %+v", s)
		}
	}
	gone := cfg.Volume
	gone[0]++
	if err := c.Verified(t.Context(), gone, early); !errors.Is(err, replication.ErrVolumeNotFound) {
		t.Errorf("of a volume that there is not: %v", err)
	}
}

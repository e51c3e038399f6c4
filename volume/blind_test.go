package volume

import (
	"testing"
	"testing/synctest"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// TestBlind: a change that leaves the in-sync set alone takes one transaction by one who has the configuration and has looked ahead.
func TestBlind(t *testing.T) {
	w, _, cfg, rev := attached(t)
	f := &filter{Store: w.store}
	c := w.configs(f)
	if err := c.LookAhead(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	change := func(prev, next *replication.Config, actor replication.DomainID, want int64) {
		t.Helper()
		f.ops.Store(0)
		r, err := c.CompareAndSwapFrom(t.Context(), prev, rev, next, actor)
		if err != nil {
			t.Fatal(err)
		}
		if n := f.ops.Load(); n != want {
			t.Errorf("%d transactions, want %d", n, want)
		}
		if got, now, err := c.Load(t.Context(), cfg.Volume); err != nil || now != r || got.ProposalID != next.ProposalID {
			t.Errorf("in force is epoch %d of revision %d, want %d of %d: %v", got.Epoch, now, next.Epoch, r, err)
		}
		cfg, rev = next, r
	}
	change(cfg, handover(cfg, "b"), "a", 1)
	change(cfg, activate(cfg), "b", 2) // of this domain nothing was known
	change(cfg, handover(cfg, "a"), "b", 1)
	sent, err := put("", cfg) // as it was told by the other one
	if err != nil {
		t.Fatal(err)
	}
	told, _, err := parseConfig(kvdb.KV{Value: sent.Value, Mod: rev})
	if err != nil {
		t.Fatal(err)
	}
	change(told, activate(cfg), "a", 1)
	change(nil, nextConfig(cfg, replication.PhaseActive, "test"), "a", 2)
	change(cfg, evict(cfg, "b"), "a", 2) // the ledger and the gate are told
	if x, err := c.Exposure(t.Context(), cfg.Volume); err != nil || x.Open == nil || x.Open.Cause != "evict" {
		t.Errorf("ledger: %+v, %v", x, err)
	}
}

// overwrite is what somebody else does to a record.
func (w *world) overwrite(key, value string) {
	if _, err := kvdb.Put(w.t.Context(), w.store, key, []byte(value)); err != nil {
		w.t.Fatal(err)
	}
}

// TestBlindIsNoLicence: whatever is not as it was known to be is found by the transaction, and a look decides.
func TestBlindIsNoLicence(t *testing.T) {
	for name, tc := range map[string]struct {
		before func(w *world, cfg *replication.Config)
		bend   func(prev *replication.Config) // what the caller believes of the configuration
		want   error
	}{
		"domain fenced":    {before: func(w *world, _ *replication.Config) { w.setDomain("a", clusterdomain.Fenced) }, want: ErrDomainNotActive},
		"domain as it was": {before: func(w *world, _ *replication.Config) { w.setDomain("a", clusterdomain.Active) }},
		"kvdb replaced": {before: func(w *world, _ *replication.Config) {
			w.overwrite(clusterdomain.IncarnationKey("c"), `{"uuid":"00000000-0000-4000-8000-000000000001"}`)
		}, want: ErrIncarnation},
		"import wanted":     {before: func(w *world, cfg *replication.Config) { w.overwrite(newKeys("c").rollback(cfg.Volume), `{}`) }, want: replication.ErrRolledBack},
		"other term":        {bend: func(p *replication.Config) { p.Coord.Term++ }, want: ErrInvalidChange},
		"other coordinator": {bend: func(p *replication.Config) { p.Coord.AttachID[0]++ }, want: ErrInvalidChange},
		"other history":     {bend: func(p *replication.Config) { p.History[0].Cause = "it is said" }},
	} {
		t.Run(name, func(t *testing.T) {
			w, c, cfg, rev := attached(t)
			prev := cfg.Clone()
			if tc.bend != nil {
				tc.bend(prev)
			}
			next := handover(prev, "b")
			if tc.before != nil {
				tc.before(w, cfg)
			}
			_, err := c.CompareAndSwapFrom(t.Context(), prev, rev, next, "a")
			wantErr(t, err, tc.want)
			if got, now, err := w.configs(w.store).Load(t.Context(), cfg.Volume); tc.want != nil && err == nil && (now != rev || got.Epoch != cfg.Epoch) {
				t.Errorf("epoch %d is in force", got.Epoch)
			}
		})
	}
	t.Run("answer lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, cfg, rev := attached(t)
			writes := 0
			f := &filter{Store: w.store, lose: func() (before, after bool) { writes++; return false, writes == 1 }}
			c := w.configs(f)
			if err := c.LookAhead(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			got, err := c.CompareAndSwapFrom(t.Context(), cfg, rev, handover(cfg, "b"), "a")
			if _, now, _ := w.configs(w.store).Load(t.Context(), cfg.Volume); err != nil || got != now || now == rev {
				t.Fatal(got, now, err)
			}
		})
	})
}

package volume

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// A volume is promised to one node, and the promise can be given up as soon as that node cannot have it attached any more.
func TestPublish(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib})
	c, ctx := w.catalogue(w.store), t.Context()
	published := func() *Publication {
		t.Helper()
		got, err := c.Get(ctx, e.ID)
		if err != nil {
			t.Fatal(err)
		}
		all, err := c.List(ctx)
		if err != nil || len(all) != 1 {
			t.Fatalf("%d volumes, %v", len(all), err)
		}
		if p, q := got.Published, all[0].Published; (p == nil) != (q == nil) || p != nil && *p != *q {
			t.Fatalf("Get says %+v, List %+v", p, q)
		}
		return got.Published
	}
	wantErr(t, c.Publish(ctx, e.ID, "n-z", false), ErrNodeNotFound)
	wantErr(t, c.Publish(ctx, replication.VolumeID(replication.NewUUID()), "n-a", false), replication.ErrVolumeNotFound)
	for range 2 {
		if err := c.Publish(ctx, e.ID, "n-a", false); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, c.Publish(ctx, e.ID, "n-a", true), ErrPublishedOtherwise)
	wantErr(t, c.Publish(ctx, e.ID, "n-b", false), ErrPublished)
	if err := c.Unpublish(ctx, e.ID, "n-b"); err != nil || published() == nil {
		t.Fatalf("unpublished from another node: %v, %+v is left", err, published())
	}

	cfg, rev, err := c.configs.Load(ctx, e.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.configs.CompareAndSwap(ctx, rev, elect(cfg, "a"), "a"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.Unpublish(ctx, e.ID, "n-a"), ErrAttached)
	wantErr(t, c.Unpublish(ctx, e.ID, ""), ErrAttached)
	w.view.Nodes[0].Online = false
	for range 2 {
		if err := c.Unpublish(ctx, e.ID, "n-a"); err != nil {
			t.Fatalf("of a node that does not answer: %v", err)
		}
	}
	if p := published(); p != nil {
		t.Fatalf("still published: %+v", p)
	}
	w.view.Nodes[0].Online = true
	wantErr(t, c.Publish(ctx, e.ID, "n-b", false), replication.ErrBusy)
}

// The mark of a blank volume goes with the first attachment that is not for mkfs, whoever makes it, and never comes back.
func TestBlank(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, c *Catalogue, id replication.VolumeID)
		want *Blank
	}{
		{"created", func(*testing.T, *Catalogue, replication.VolumeID) {}, &Blank{}},
		{"attached", func(t *testing.T, c *Catalogue, id replication.VolumeID) { c.attachAs(t, id, "a") }, nil},
		{"to be formatted", func(t *testing.T, c *Catalogue, id replication.VolumeID) { c.begin(t, id, "n-a", true) }, &Blank{"n-a"}},
		{"being formatted", func(t *testing.T, c *Catalogue, id replication.VolumeID) {
			c.begin(t, id, "n-a", true)
			defer c.configs.Formatting(id)()
			c.attachAs(t, id, "a")
		}, &Blank{"n-a"}},
		{"mkfs was interrupted, again elsewhere", func(t *testing.T, c *Catalogue, id replication.VolumeID) {
			c.begin(t, id, "n-a", true)
			done := c.configs.Formatting(id)
			c.attachAs(t, id, "a")
			done()
			c.detachAs(t, id, "a")
			c.begin(t, id, "n-a", false)
			c.begin(t, id, "n-b", false)
			defer c.configs.Formatting(id)()
			c.attachAs(t, id, "b")
		}, &Blank{"n-b"}},
		{"mkfs was interrupted, then attached by somebody", func(t *testing.T, c *Catalogue, id replication.VolumeID) {
			c.begin(t, id, "n-a", true)
			c.attachAs(t, id, "a")
		}, nil},
		{"formatted", func(t *testing.T, c *Catalogue, id replication.VolumeID) {
			c.begin(t, id, "n-a", true)
			if err := c.EndFormat(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			e := w.create(Request{Name: "v", Size: gib})
			c := w.catalogue(w.store)
			tc.do(t, c, e.ID)
			got, err := c.Get(t.Context(), e.ID)
			if err != nil {
				t.Fatal(err)
			}
			if (got.Blank == nil) != (tc.want == nil) || got.Blank != nil && *got.Blank != *tc.want {
				t.Fatalf("blank %+v, want %+v", got.Blank, tc.want)
			}
			if got.Blank != nil {
				return
			}
			if _, err := c.BeginFormat(t.Context(), e.ID, "n-a"); err == nil {
				t.Error("it may be formatted")
			} else {
				wantErr(t, err, ErrNotBlank)
			}
		})
	}
}

// What the records of a deleted volume were is gone with it.
func TestBlankDeleted(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib})
	c := w.catalogue(w.store)
	if err := c.Publish(t.Context(), e.ID, "n-a", false); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	w.settle("n-a", "n-b")
	for _, prefix := range []string{c.keys.publications(), c.keys.blanks()} {
		if kvs, _, err := w.store.List(t.Context(), prefix); err != nil || len(kvs) > 0 {
			t.Errorf("%d keys under %s, %v", len(kvs), prefix, err)
		}
	}
}

// Whatever lets another attachment write, or puts other data in force, counts.
func TestAttaches(t *testing.T) {
	x, y := &replication.Coord{AttachID: replication.AttachID{1}}, &replication.Coord{AttachID: replication.AttachID{2}}
	for _, tc := range []struct {
		name       string
		prev, next replication.Config
		want       bool
	}{
		{"attached", replication.Config{}, replication.Config{Coord: x}, true},
		{"goes on", replication.Config{Coord: x}, replication.Config{Coord: x}, false},
		{"taken over, handed over", replication.Config{Coord: x}, replication.Config{Coord: y}, true},
		{"detached", replication.Config{Coord: x}, replication.Config{}, false},
		{"forced", replication.Config{}, replication.Config{ForkGen: 1}, true},
	} {
		if got := attaches(&tc.prev, &tc.next); got != tc.want {
			t.Errorf("%s: %t, want %t", tc.name, got, tc.want)
		}
	}
}

func (c *Catalogue) begin(t *testing.T, id replication.VolumeID, node replication.NodeID, wantFresh bool) {
	t.Helper()
	if fresh, err := c.BeginFormat(t.Context(), id, node); err != nil || fresh != wantFresh {
		t.Fatalf("begin to format: fresh %t, %v; want %t", fresh, err, wantFresh)
	}
}

func (c *Catalogue) attachAs(t *testing.T, id replication.VolumeID, d replication.DomainID) {
	t.Helper()
	c.swapAs(t, id, d, func(cfg *replication.Config) *replication.Config { return elect(cfg, d) })
	c.swapAs(t, id, d, activate)
}

func (c *Catalogue) detachAs(t *testing.T, id replication.VolumeID, d replication.DomainID) {
	t.Helper()
	c.swapAs(t, id, d, detach)
}

// swapAs makes one change, without a look if that can be done.
func (c *Catalogue) swapAs(t *testing.T, id replication.VolumeID, d replication.DomainID, change func(*replication.Config) *replication.Config) {
	t.Helper()
	cfg, rev, err := c.configs.Load(t.Context(), id)
	if err == nil {
		_, err = c.configs.CompareAndSwapFrom(t.Context(), cfg, rev, change(cfg), d)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A publication or a mark that cannot be read keeps nobody from attaching the volume and hides it nowhere. The mark then counts as none: the volume is not formatted.
func TestUnreadableBeside(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib})
	c, ctx := w.catalogue(w.store), t.Context()
	for _, key := range []string{c.keys.published(e.ID), c.keys.blank(e.ID)} {
		if _, err := kvdb.Put(ctx, w.store, key, []byte("{")); err != nil {
			t.Fatal(err)
		}
	}
	all, err := c.List(ctx)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d volumes, %v", len(all), err)
	}
	got, err := c.Get(ctx, e.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []*Entry{got, all[0]} {
		if e.Blank != nil || !errors.Is(e.Damage, ErrBadRecord) || !strings.Contains(e.Progress(), c.keys.published(e.ID)) {
			t.Errorf("blank %v, damage %v, progress %q", e.Blank, e.Damage, e.Progress())
		}
	}
	wantErr(t, c.Publish(ctx, e.ID, "n-a", false), ErrBadRecord)
	_, err = c.BeginFormat(ctx, e.ID, "n-a")
	wantErr(t, err, ErrBadRecord)
	c.attachAs(t, e.ID, "a")
	if kv, err := w.store.Get(ctx, c.keys.blank(e.ID)); !errors.Is(err, kvdb.ErrNotFound) {
		t.Errorf("the mark after an attachment: %v, %v", kv, err)
	}
}

// formatter attaches for mkfs whoever asks, as a node does that is asked for both at once.
type formatter struct{ runtime }

func (f formatter) Attach(ctx context.Context, v replication.VolumeID, o AttachOptions) (string, error) {
	defer f.c.Formatting(v)()
	return f.runtime.Attach(ctx, v, o)
}

// Nobody but mkfs is given the device of an attachment that was made for mkfs, not even who asked at the same time.
func TestAttachBesideFormat(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib})
	configs := w.configs(w.store)
	s := NewServer(w.catalogue(w.store), ServerOptions{
		Node: "n-a", Runtime: formatter{runtime{configs, new(Verify)}}, Orphans: func() []LocalReplica { return nil },
	})
	r := &volumepb.AttachVolumeRequest{Volume: e.ID.String(), ForFormat: true}
	if got, err := s.AttachVolume(t.Context(), r); err != nil || !got.Fresh {
		t.Fatalf("for mkfs: %v, %v", got, err)
	}
	_, err := s.AttachVolume(t.Context(), &volumepb.AttachVolumeRequest{Volume: e.ID.String()})
	wantErr(t, err, ErrAttached)
	if _, err := s.FinishFormat(t.Context(), &volumepb.FinishFormatRequest{Volume: e.ID.String()}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AttachVolume(t.Context(), &volumepb.AttachVolumeRequest{Volume: e.ID.String()}); err != nil {
		t.Errorf("after mkfs: %v", err)
	}
}

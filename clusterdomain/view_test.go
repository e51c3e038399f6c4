package clusterdomain

import (
	"slices"
	"testing"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/memkv"
)

// One record that cannot be read is told, counts as it was, and hides no other.
func TestUnreadableRecords(t *testing.T) {
	srv := memkv.NewServer(memkv.Options{})
	for _, d := range []string{"a", "b"} {
		if err := node(t, srv.Open(), "n-"+d, d, volumes{}).bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s, m := srv.Open(), node(t, srv.Open(), "n-a", "a", volumes{})
	if err := m.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Deactivate(t.Context(), Change{Domain: "b", PeerLost: true, Actor: "op"}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{DomainKey("c", "b"), DomainKey("c", "new"), knownPrefix("c") + "x"} {
		if _, err := kvdb.Put(t.Context(), s, key, []byte(`{"name":`)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := m.View()
	if v.State("a") != Active || v.State("b") != Fenced || len(v.Domains) != 2 {
		t.Errorf("domains %+v", v.Domains)
	}
	var told []string
	for _, a := range Alerts(Observed{View: v}) {
		if a.Code == AlertRecordUnreadable {
			told = append(told, a.Resource)
		}
	}
	slices.Sort(told)
	if want := []string{"domain/b", "domain/new", "node/x"}; !slices.Equal(told, want) {
		t.Errorf("told of %v, want %v", told, want)
	}
	if d, err := m.Activate(t.Context(), Change{Domain: "b", Actor: "op"}); err != nil || d.State != Rejoining {
		t.Errorf("a change does not write it anew: %+v, %v", d, err)
	}
}

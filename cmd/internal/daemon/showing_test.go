package daemon

import (
	"errors"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// TestShowingName: two attachments of a volume, on one node and in one domain, never have the same name.
func TestShowingName(t *testing.T) {
	vol := replication.VolumeID{1}
	name := func(a replication.AttachID) string {
		n, err := showingName(vol, &replication.Config{Coord: &replication.Coord{Node: "a1", Domain: "alpha", AttachID: a, Term: 7}})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	one, two := replication.AttachID{1}, replication.AttachID{2}
	if name(one) == name(two) {
		t.Errorf("two attachments are shown as %s", name(one))
	}
	if again := name(one); again != name(one) {
		t.Errorf("one attachment has two names, %s and %s", name(one), again)
	}
	if _, err := showingName(vol, &replication.Config{}); !errors.Is(err, replication.ErrNotCoordinator) {
		t.Errorf("of a volume that is detached: %v, want ErrNotCoordinator", err)
	}
}

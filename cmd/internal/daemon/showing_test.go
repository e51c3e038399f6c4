package daemon

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// TestAttachmentName: two attachments of a volume never have the same name, and the name tells which it is.
func TestAttachmentName(t *testing.T) {
	one, two := attachment{replication.VolumeID{1}, replication.AttachID{1}}, attachment{replication.VolumeID{1}, replication.AttachID{2}}
	if one.String() == two.String() {
		t.Errorf("two attachments are shown as %s", one)
	}
	if got, err := parseAttachment(one.String()); err != nil || got != one {
		t.Errorf("%s is read as %s, %v", one, got, err)
	}
	for _, s := range []string{"", ".", one.volume.String(), one.volume.String() + ".", "x." + one.id.String(), one.String() + ".x"} {
		if got, err := parseAttachment(s); err == nil {
			t.Errorf("%q is read as %s", s, got)
		}
	}
}

package daemon

import (
	"errors"
	"path/filepath"
	"testing"

	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume"
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

// TestEndOfWhatGoesOn: an attachment of the process before this one is not dead from the start of this one on, until it is decided.
func TestEndOfWhatGoesOn(t *testing.T) {
	dir := t.TempDir()
	c := &config.Config{NodeID: "n", DataDir: dir}
	c.Frontends.NBD.Socket, c.Frontends.Device.Socket, c.Frontends.FuseLoop.Dir = filepath.Join(dir, "nbd"), filepath.Join(dir, "device"), filepath.Join(dir, "loop")
	a := attachment{replication.VolumeID{1}, replication.AttachID{2}}
	records, err := openAttachments(filepath.Join(dir, "attachments"))
	if err == nil {
		err = records.put(record{a, frontend.KindNBD})
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRuntime(c, nil, nil, replication.BootID{}, nil, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := r.EndAttachment(t.Context(), a.volume, replication.Coord{Node: "n", AttachID: a.id}); !errors.Is(err, volume.ErrAttached) {
		t.Errorf("the end of one that may go on: %v", err)
	}
}

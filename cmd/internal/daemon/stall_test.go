package daemon

import (
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
)

func TestStall(t *testing.T) {
	for _, tc := range []struct {
		stall core.Stall
		mode  replication.Protection
		want  core.Stall
	}{
		{core.StallNone, replication.MaxProtection, core.StallNone},
		{core.StallNeedReplica, replication.MaxAvailability, core.StallNeedReplica},
		{core.StallNeedReplica, replication.MaxProtection, core.StallProtection},
		{core.StallKVDB, replication.MaxProtection, core.StallKVDB},
	} {
		got := stall(&replvolume.Status{Stall: tc.stall, Config: &replication.Config{Protection: tc.mode}})
		switch {
		case tc.want == core.StallNone && got != nil:
			t.Errorf("%q: a stall %+v of a volume that has none", tc.stall, got)
		case tc.want != core.StallNone && (got == nil || got.Cause != string(tc.want) || got.Text == ""):
			t.Errorf("%q with %s: %+v, want cause %s with a text", tc.stall, tc.mode, got, tc.want)
		}
	}
}

// TestStallWhileDetaching: a detach that waits says so, and for what.
func TestStallWhileDetaching(t *testing.T) {
	got := stall(&replvolume.Status{Stall: core.StallKVDB, Detaching: true, Config: &replication.Config{}})
	if got == nil || got.Cause != string(core.StallKVDB) || !strings.Contains(got.Text, "being detached") || !strings.Contains(got.Text, stallText[core.StallKVDB]) {
		t.Errorf("got %+v", got)
	}
}

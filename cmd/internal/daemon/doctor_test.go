package daemon

import (
	"testing"
	"time"

	"github.com/tandem-storage/tandem/cmd/internal/config"
)

// Measurements are judged by the timers that this node is configured with.
func TestDoctorTimers(t *testing.T) {
	c := new(config.Config)
	c.Replication.SuspectTimeout, c.Replication.OpTimeout, c.Failover.NodeTTL = 3*time.Second, 7*time.Second, 5*time.Second
	if got := timers(c); got.SuspectUs != 3_000_000 || got.OperationUs != 7_000_000 || got.LeaseUs != 5_000_000 {
		t.Error(got)
	}
}

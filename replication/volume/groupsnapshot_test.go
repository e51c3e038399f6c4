package volume

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// TestSnapshotsOfTwoHeld has a consumer write n to one volume and, when that is acknowledged, n to the other one. Snapshots of both that are taken while both are held, by one operation and to the end, have the same
// number, or one more in the first (I28); those of which a hold ended by itself say so.
func TestSnapshotsOfTwoHeld(t *testing.T) {
	cs := []*testCluster{newTestCluster(t, 1<<20), newTestCluster(t, 1<<20)}
	vs := []*Volume{cs[0].nodes[0].attach(), cs[1].nodes[0].attach()}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	wrote := make(chan uint64, 1) // the newest number that both have
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		p := make([]byte, block.SectorSize)
		for n := uint64(1); ; n++ {
			binary.LittleEndian.PutUint64(p, n)
			for _, v := range vs {
				if err := block.WriteAt(v, p, 0, 0); err != nil {
					t.Errorf("write %d: %v", n, err)
					return
				}
			}
			select {
			case <-wrote:
			default:
			}
			wrote <- n
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for k := range 30 {
		least := <-wrote
		op, id := replication.NewUUID(), replication.SnapshotID{byte(k + 1)}
		hold := []time.Duration{20 * time.Second, 5 * time.Millisecond}[k%2]
		counts := true
		for _, v := range vs {
			held, cancel := context.WithTimeout(ctx, hold)
			counts = v.HoldForCut(held, op, hold) == nil && counts
			cancel()
		}
		for i, v := range vs {
			if i > 0 && hold < time.Second { // the holds end before the second cut: writes go on
				<-wrote
				<-wrote
			}
			_, err := v.Snapshot(ctx, id, 5*time.Second, 5*time.Second)
			counts = err == nil && counts
		}
		for _, v := range vs {
			held, err := v.ReleaseCut(ctx, op)
			counts = held && err == nil && counts
		}
		if !counts {
			if hold > time.Second {
				t.Errorf("round %d: not taken", k)
			}
			continue
		}
		var has [2]uint64
		for i, c := range cs {
			for _, n := range c.nodes {
				n.st.mu.Lock()
				has[i] = binary.LittleEndian.Uint64(n.st.snaps[id])
				n.st.mu.Unlock()
			}
		}
		if has[1] < least || has[0] != has[1] && has[0] != has[1]+1 {
			t.Errorf("round %d: %d and %d; %d were acknowledged by both before", k, has[0], has[1], least)
		}
	}
	close(stop)
	<-stopped
}

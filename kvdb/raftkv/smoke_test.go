package raftkv

import (
	"context"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/kvdb"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		m, err := OpenMember(Options{Node: "n1", Dir: dir, Bootstrap: true, Logger: zaptest.NewLogger(t)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := m.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		rev, err := kvdb.Put(ctx, m, "a", []byte("b"))
		t.Log(i, rev, err, time.Since(start))
		kv, err := m.Get(ctx, "a")
		t.Log(kv, err, time.Since(start))
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

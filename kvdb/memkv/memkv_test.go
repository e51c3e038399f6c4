package memkv_test

import (
	"testing"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbtest"
	"github.com/tandem-storage/tandem/kvdb/memkv"
)

func TestSuite(t *testing.T) {
	kvdbtest.Run(t, func(*testing.T) kvdbtest.Harness {
		server := memkv.NewServer(memkv.Options{})
		return kvdbtest.Harness{
			Open:    func(testing.TB) kvdb.Store { return server.Open() },
			Compact: func(_ testing.TB, rev kvdb.Revision) { server.Compact(rev) },
		}
	})
}

package clusterdomain

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// A failover is summed up over the volumes that have a receipt; what is not known of one is counted as such.
func TestFailoverSum(t *testing.T) {
	verified := func(equal bool) *clusterdomainpb.Verified { return &clusterdomainpb.Verified{Equal: equal} }
	exposed := new(clusterdomainpb.Receipt_Exposed)
	got := sumPB([]*clusterdomainpb.FailoverVolume{
		{Cause: "last-copy"},
		{AttachedUnixMs: 1, Receipt: &clusterdomainpb.Receipt{Kept: true, ReturnedUnixMs: 1, ReturnedBytes: 10, Verified: verified(true)}},
		{AttachedUnixMs: 1, Receipt: &clusterdomainpb.Receipt{Kept: true, Exposed: exposed, ExposedBytes: 7, ReturnedUnixMs: 1, ReturnedBytes: 5, Verified: verified(false)}},
		{Receipt: &clusterdomainpb.Receipt{Exposed: exposed}},
	})
	want := &clusterdomainpb.FailoverSum{
		Volumes: 4, Moved: 2, Receipts: 3, Kept: 2, Exposed: 2, ExposedBytes: 7, ExposedUnknown: 1, Returned: 2, ReturnedBytes: 15, Verified: 2, Equal: 1,
	}
	if !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

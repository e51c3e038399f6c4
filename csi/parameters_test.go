package csi

import (
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Each parameter has values that it takes and values that it does not, and what is unknown is refused with all that are known.
func TestParameters(t *testing.T) {
	values := map[string]struct{ good, bad []string }{
		"bandwidth":      {[]string{"1MiB", "100Mi", "1048576", "0", "1024TiB"}, []string{"", "1023KiB", "1MB", "-1", "1.5GiB", "1025TiB", "9999999999999999TiB", "99999999999999999"}},
		"iops":           {[]string{"10", "0", "100000"}, []string{"", "9", "-10", "1k", "99999999999"}},
		"group":          {[]string{"db", "k1-${pvc.namespace}", "${pvc.namespace}", strings.Repeat("x", 128)}, []string{"", "-db", "a b", "../x", "${pvc.name}", "${pvc.namespace", strings.Repeat("x", 129)}},
		"domains":        {[]string{"a", "b,a", "a, b"}, []string{"", "A", "a,,b", "../x"}},
		"failover":       {[]string{"manual", "automatic"}, []string{"", "never"}},
		"apart":          {[]string{"app=db", "tier in (1,2)"}, []string{"", "==", strings.Repeat("x", 1025)}},
		"near":           {[]string{"app=db,!old"}, []string{"", "=x"}},
		"nodes":          {[]string{"disk=nvme,rack!=r7"}, []string{" ", "a=b=c"}},
		"labels":         {[]string{"app=db,tier=1", "x="}, []string{"", "app", "=db", told[0] + "=x", "a=" + strings.Repeat("x", 256)}},
		"poolClass":      {[]string{"fast"}, []string{"", strings.Repeat("x", 256)}},
		"space":          {[]string{"thin", "thick"}, []string{"", "THICK"}},
		"spread":         {[]string{"rack"}, []string{""}},
		"mkfsOptions":    {[]string{"-m reflink=1", "-i size=512 -O ^has_journal", ""}, []string{"/dev/sda", "-f;reboot", "$(x)", "'a b'", "../x", "--help"}},
		"needDomains":    {[]string{"a"}, []string{"a b"}},
		"needInSync":     {[]string{"0", "3"}, []string{"", "4", "-1", "00", "x"}},
		"needStall":      {[]string{"0s", "30s"}, []string{"30", "-1s", ""}},
		"protection":     {[]string{"max-availability", "max-protection"}, []string{"", "MAX"}},
		"resyncPriority": {[]string{"low", "normal", "high"}, []string{"", "HIGH", "1"}},
		"replicas":       {[]string{"1", "3"}, []string{"0", "4", "", "1.5"}},
	}
	for _, p := range Parameters() {
		if p.Name == paramEncryption {
			continue // TestReserved
		}
		v, ok := values[p.Name]
		if !ok {
			t.Errorf("%s is not tested", p.Name)
		}
		for i, all := range [][]string{v.good, v.bad} {
			for _, s := range all {
				err := apply(&volumepb.CreateVolumeRequest{}, map[string]string{p.Name: s}, false)
				if (err == nil) != (i == 0) {
					t.Errorf("%s=%q: %v", p.Name, s, err)
				}
			}
		}
		if err := apply(&volumepb.CreateVolumeRequest{}, map[string]string{p.Name: v.good[0]}, true); (err == nil) != p.Mutable {
			t.Errorf("%s changed: %v", p.Name, err)
		}
	}
	err := apply(&volumepb.CreateVolumeRequest{}, map[string]string{"replica": "2"}, false)
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	for name := range values {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not name %s", err, name)
		}
	}
}

// Nobody who asks for encryption gets a volume without it, whatever he says and wherever, and he is told so.
func TestReserved(t *testing.T) {
	d := New(Options{Backend: newCluster(), Node: "node-a"})
	for _, v := range []string{"", "true", "false", "none", "luks2"} {
		params := map[string]string{paramEncryption: v}
		_, made := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*spec.VolumeCapability{raw()}, Parameters: params})
		_, mutable := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*spec.VolumeCapability{raw()}, MutableParameters: params})
		_, room := d.GetCapacity(t.Context(), &spec.GetCapacityRequest{Parameters: params})
		for what, err := range map[string]error{"made": made, "made with a VolumeAttributesClass": mutable, "room": room} {
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "reserved: nothing is encrypted yet") {
				t.Errorf("%s, %q: %v", what, v, err)
			}
		}
	}
	plain, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*spec.VolumeCapability{raw()}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.ControllerModifyVolume(t.Context(), &spec.ControllerModifyVolumeRequest{
		VolumeId: plain.GetVolume().GetVolumeId(), MutableParameters: map[string]string{paramEncryption: "true"},
	})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "reserved") {
		t.Errorf("changed: %v", err)
	}
	if err := apply(&volumepb.CreateVolumeRequest{}, map[string]string{"other": ""}, false); strings.Contains(err.Error(), paramEncryption) {
		t.Errorf("%v offers what is reserved", err)
	}
}

func segment(domain string) *spec.Topology {
	return &spec.Topology{Segments: map[string]string{TopologyDomain: domain}}
}

// nodes is a cluster with a node in each domain, whose pools have so much room.
func nodes(rooms map[string]uint64) *clusterdomainpb.GetStatusResponse {
	s := &clusterdomainpb.GetStatusResponse{}
	for d, r := range rooms {
		s.Nodes = append(s.Nodes, &clusterdomainpb.Node{
			Name: "n-" + d, Domain: d, State: clusterdomainpb.NodeState_NODE_STATE_ONLINE, Pools: []*clusterdomainpb.Pool{{TotalBytes: r}},
		})
	}
	return s
}

func TestPlace(t *testing.T) {
	s := nodes(map[string]uint64{"a": 1, "b": 1, "c": 1})
	for _, tc := range []struct {
		name     string
		replicas uint32
		top      *spec.TopologyRequirement
		want     string
		code     codes.Code
	}{
		{"none asked for", 1, nil, "", codes.OK},
		{"preferred first", 1, &spec.TopologyRequirement{Requisite: []*spec.Topology{segment("a"), segment("b")}, Preferred: []*spec.Topology{segment("b")}}, "b", codes.OK},
		{"as many as replicas", 2, &spec.TopologyRequirement{Requisite: []*spec.Topology{segment("c"), segment("a"), segment("b")}}, "a,c", codes.OK},
		{"a replica in each anyway", 3, &spec.TopologyRequirement{Requisite: []*spec.Topology{segment("a")}}, "", codes.OK},
		{"by default too", 0, &spec.TopologyRequirement{Requisite: []*spec.Topology{segment("a")}}, "", codes.OK},
		{"nowhere", 1, &spec.TopologyRequirement{Requisite: []*spec.Topology{segment("z")}}, "", codes.ResourceExhausted},
		{"another key", 1, &spec.TopologyRequirement{Requisite: []*spec.Topology{{Segments: map[string]string{"zone": "a"}}}}, "", codes.InvalidArgument},
	} {
		want := &volumepb.CreateVolumeRequest{Replicas: tc.replicas}
		if err := place(want, s, tc.top); status.Code(err) != tc.code || strings.Join(want.Domains, ",") != tc.want {
			t.Errorf("%s: %v, %v", tc.name, want.Domains, err)
		}
	}
}

// The node that a claim waits for has a replica, not those that only could have one.
func TestNear(t *testing.T) {
	h := newHost(t)
	at := func(node, domain string) *spec.Topology {
		return &spec.Topology{Segments: map[string]string{TopologyDomain: domain, TopologyNode: node}}
	}
	r := &spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*spec.VolumeCapability{raw()}, AccessibilityRequirements: &spec.TopologyRequirement{
		Requisite: []*spec.Topology{at("node-a", "a"), at("node-b", "b")}, Preferred: []*spec.Topology{at("node-b", "b"), at("node-a", "a")},
	}}
	for want, near := range map[string]*spec.TopologyRequirement{"node-b": r.AccessibilityRequirements, "": {Requisite: r.AccessibilityRequirements.Requisite}} {
		r.Name, r.AccessibilityRequirements = "v-"+want, near
		if _, err := h.CreateVolume(t.Context(), r); err != nil || h.c.near != want {
			t.Errorf("near %q, want %q: %v", h.c.near, want, err)
		}
	}
}

func TestRoom(t *testing.T) {
	s := nodes(map[string]uint64{"a": 40960, "b": 20480, "c": 8192})
	for _, n := range s.Nodes {
		n.Labels = map[string]string{"site": n.Domain}
		if n.Domain == "a" {
			n.Pools = append(n.Pools, &clusterdomainpb.Pool{TotalBytes: 4096 * 3, Class: "fast"})
		}
	}
	for _, tc := range []struct {
		replicas uint32
		segment  map[string]string
		want     int64
		placing  *volumepb.Placing
	}{
		{1, nil, 40960, nil},
		{2, nil, 20480, nil},
		{0, nil, 8192, nil},
		{1, map[string]string{TopologyDomain: "b"}, 20480, nil},
		{2, map[string]string{TopologyDomain: "b"}, 20480, nil},
		{2, map[string]string{TopologyDomain: "c", TopologyNode: "n-c"}, 8192, nil},
		{1, map[string]string{TopologyDomain: "z"}, 0, nil},
		{1, map[string]string{TopologyDomain: "a", TopologyNode: "n-b"}, 0, nil},
		{1, nil, 20480, &volumepb.Placing{Nodes: "site!=a"}},
		{1, nil, 12288, &volumepb.Placing{Class: "fast"}},
		{2, nil, 0, &volumepb.Placing{Spread: "rack"}},
		{2, nil, 20480, &volumepb.Placing{Spread: "site"}},
	} {
		got, err := room(&volumepb.CreateVolumeRequest{Replicas: tc.replicas, Placing: tc.placing}, s, tc.segment)
		if err != nil || got != tc.want {
			t.Errorf("%d replicas in %v, %v: %d, want %d, %v", tc.replicas, tc.segment, tc.placing, got, tc.want, err)
		}
	}
	if got, err := room(&volumepb.CreateVolumeRequest{}, nodes(nil), nil); got != 0 || err != nil {
		t.Errorf("no nodes: %d, %v", got, err)
	}
}

// A class says which group a volume comes into, or that each namespace of claims has one. A volume of that name in another group is not the one that is asked for.
func TestGroupOfClass(t *testing.T) {
	c := newCluster()
	d := New(Options{Backend: c, Node: "node-a"})
	source := ""
	create := func(name, group, namespace string) (*volumepb.Volume, error) {
		params := map[string]string{paramGroup: group}
		if group == "" {
			delete(params, paramGroup)
		}
		if namespace != "" {
			params[toldNamespace] = namespace
		}
		r := &spec.CreateVolumeRequest{Name: name, VolumeCapabilities: []*spec.VolumeCapability{raw()}, Parameters: params}
		if source != "" {
			r.VolumeContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: source}}}
		}
		resp, err := d.CreateVolume(t.Context(), r)
		return c.volumes[resp.GetVolume().GetVolumeId()], err
	}
	for _, tc := range []struct {
		name, group, namespace, want string
		code                         codes.Code
	}{
		{"u", "db", "", "db", codes.OK},
		{"v", "${pvc.namespace}", "shop", "shop", codes.OK},
		{"v", "${pvc.namespace}", "shop", "shop", codes.OK},
		{"v", "shop", "", "shop", codes.OK},
		{"v", "${pvc.namespace}", "bank", "", codes.AlreadyExists},
		{"v", "", "shop", "", codes.AlreadyExists},
		{"w", "", "shop", "", codes.OK},
		{"w", "db", "", "", codes.AlreadyExists},
		{"x", "k1.${pvc.namespace}-${pvc.namespace}", "a", "k1.a-a", codes.OK},
		{"y", "${pvc.namespace}", "", "", codes.InvalidArgument},
		{"y", "${pvc.namespace}", "../a", "", codes.InvalidArgument},
		{"y", "${pvc.namespace}" + strings.Repeat("x", 120), strings.Repeat("n", 63), "", codes.InvalidArgument},
		{"copy", "db", "", "db", codes.OK},
	} {
		if tc.name == "copy" {
			source = c.volumes["00000001-0000-4000-8000-000000000007"].GetId()
		}
		v, err := create(tc.name, tc.group, tc.namespace)
		if status.Code(err) != tc.code || v.GetGroup() != tc.want {
			t.Errorf("%s, group %q, namespace %q: in %q, %v", tc.name, tc.group, tc.namespace, v.GetGroup(), err)
		}
	}
	for _, tc := range []struct {
		params map[string]string
		ok     bool
	}{{map[string]string{paramGroup: claimNamespace}, true}, {map[string]string{paramGroup: "${pvc.name}"}, false}} {
		_, err := d.GetCapacity(t.Context(), &spec.GetCapacityRequest{Parameters: tc.params}) // of no claim
		if (err == nil) != tc.ok {
			t.Errorf("%v: %v", tc.params, err)
		}
	}
	c.volumes["00000001-0000-4000-8000-000000000007"].Group = "" // somebody took it out since
	source = ""
	if _, err := create("u", "db", ""); err != nil {
		t.Error(err)
	}
}

// The external-provisioner asks for the capacity of a StorageClass with all that it says, also with what is for the sidecars, which it takes out of CreateVolume.
func TestCapacityOfClass(t *testing.T) {
	h := newHost(t)
	for _, tc := range []struct {
		params map[string]string
		want   int64
		code   codes.Code
	}{
		{nil, 80 << 30, codes.OK},
		{map[string]string{"csi.storage.k8s.io/fstype": "ext4", "csi.storage.k8s.io/provisioner-secret-name": "s", "replicas": "1"}, 90 << 30, codes.OK},
		{map[string]string{"fsType": "ext4"}, 80 << 30, codes.OK}, // as it was written before, and is still taken
		{map[string]string{"csi.storage.k8s.io/fstype": "ext4", "replica": "1"}, 0, codes.InvalidArgument},
	} {
		resp, err := h.GetCapacity(t.Context(), &spec.GetCapacityRequest{Parameters: tc.params})
		if status.Code(err) != tc.code || resp.GetAvailableCapacity() != tc.want {
			t.Errorf("%v: %d bytes, %v; want %d, %s", tc.params, resp.GetAvailableCapacity(), err, tc.want, tc.code)
		}
	}
}

// A volume is made with a resync priority, or gets another one while it is used; what a class does not name stays, and what a class names that is so already asks for nothing.
func TestModifyPriority(t *testing.T) {
	const low, normal, high = volumepb.ResyncPriority_RESYNC_PRIORITY_LOW, volumepb.ResyncPriority_RESYNC_PRIORITY_NORMAL, volumepb.ResyncPriority_RESYNC_PRIORITY_HIGH
	c := newCluster()
	d := New(Options{Backend: c, Node: "node-a"})
	resp, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{
		Name: "v", VolumeCapabilities: []*spec.VolumeCapability{raw()}, Parameters: map[string]string{"resyncPriority": "low"}, MutableParameters: map[string]string{"iops": "100"},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := resp.GetVolume().GetVolumeId()
	if got := c.volumes[id].ResyncPriority; got != low {
		t.Errorf("made with priority %v", got)
	}
	for _, tc := range []struct {
		params map[string]string
		want   volumepb.ResyncPriority
		code   codes.Code
	}{
		{map[string]string{"resyncPriority": "high"}, high, codes.OK},
		{map[string]string{"resyncPriority": "high"}, high, codes.OK},
		{map[string]string{"protection": "max-protection"}, high, codes.OK},
		{map[string]string{"resyncPriority": "normal", "iops": "50"}, normal, codes.OK},
		{map[string]string{"resyncPriority": "urgent", "iops": "20"}, normal, codes.InvalidArgument},
	} {
		_, err := d.ControllerModifyVolume(t.Context(), &spec.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: tc.params})
		if got := c.volumes[id].ResyncPriority; status.Code(err) != tc.code || got != tc.want {
			t.Errorf("%v: %v, %v", tc.params, got, err)
		}
	}
	if v := c.volumes[id]; v.GetLimits().GetIops() != 50 || v.GetProtection() != volumepb.Protection_PROTECTION_MAX_PROTECTION || v.GetEpoch() != 2 {
		t.Errorf("%v", v)
	}
}

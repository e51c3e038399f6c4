package nodeloss

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// storage is a Tandem of nodes t-n1 and t-n2, both with a replica of volume v, which is attached on t-n1.
type storage struct {
	clusterdomainpb.ClusterClient
	volumepb.VolumesClient
	healthy, n1 bool
}

func (s *storage) GetStatus(context.Context, *clusterdomainpb.GetStatusRequest, ...grpc.CallOption) (*clusterdomainpb.GetStatusResponse, error) {
	state := clusterdomainpb.NodeState_NODE_STATE_OFFLINE
	if s.n1 {
		state = clusterdomainpb.NodeState_NODE_STATE_ONLINE
	}
	return &clusterdomainpb.GetStatusResponse{
		ThisNode: "t-n2", Kvdb: &clusterdomainpb.Kvdb{Healthy: s.healthy, Error: "no leader"},
		Nodes: []*clusterdomainpb.Node{{Name: "t-n1", State: state}, {Name: "t-n2", State: clusterdomainpb.NodeState_NODE_STATE_ONLINE}},
	}, nil
}

func (s *storage) ListVolumes(context.Context, *volumepb.ListVolumesRequest, ...grpc.CallOption) (*volumepb.ListVolumesResponse, error) {
	return &volumepb.ListVolumesResponse{Volumes: []*volumepb.Volume{{
		Id: "v", Attachment: &volumepb.Attachment{Node: "t-n1"},
		Replicas: []*volumepb.Replica{{Node: "t-n1", InSync: true}, {Node: "t-n2", InSync: true}},
	}}}, nil
}

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func in(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("uid-of-" + name)}
}

func using(o metav1.ObjectMeta, node, claim string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: o, Spec: corev1.PodSpec{NodeName: node, Volumes: []corev1.Volume{{
		Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}},
	}}}}
}

func volumeOf(name, driver, handle, claim string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: meta(name), Spec: corev1.PersistentVolumeSpec{
		ClaimRef:               &corev1.ObjectReference{Namespace: "db", Name: claim},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle}},
	}}
}

// cluster is a Kubernetes of nodes n1 and n2, with pods of all kinds on n1. It answers as the API server does, but for preconditions: make
// test-e2e has a real one.
func cluster(t *testing.T) *fake.Clientset {
	t.Helper()
	daemonSet := in("db", "of-a-daemonset")
	yes := true
	daemonSet.OwnerReferences = []metav1.OwnerReference{{Kind: "DaemonSet", Name: "d", Controller: &yes}}
	out := in("db", "opted-out")
	out.Labels = map[string]string{OptOut: OptOutValue}
	ephemeral := &corev1.Pod{ObjectMeta: in("db", "scratch"), Spec: corev1.PodSpec{NodeName: "n1", Volumes: []corev1.Volume{
		{Name: "tmp", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
	}}}
	c := fake.NewClientset(
		using(in("db", "db-0"), "n1", "data"), using(in("db", "elsewhere"), "n2", "data2"), using(in("db", "other-driver"), "n1", "files"),
		using(daemonSet, "n1", "data2"), using(out, "n1", "data2"), using(in("web", "same-name"), "n1", "data"), ephemeral,
		volumeOf("pv-1", Driver, "v", "data"), volumeOf("pv-2", Driver, "w", "data2"), volumeOf("pv-3", "other.csi", "v", "files"), volumeOf("pv-4", Driver, "v", "scratch-tmp"),
	)
	for _, n := range []string{"n1", "n2"} {
		node := &corev1.Node{ObjectMeta: meta(n), Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "theirs", Effect: corev1.TaintEffectNoSchedule}}}}
		node.Status.VolumesInUse = []corev1.UniqueVolumeName{inUsePrefix + "v", "kubernetes.io/csi/other.csi^v", inUsePrefix + "w"}
		for _, err := range []error{
			c.Tracker().Add(node),
			c.Tracker().Add(&storagev1.CSINode{ObjectMeta: meta(n), Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: Driver, NodeID: "t-" + n}}}}),
			c.Tracker().Add(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: n}}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}

// rig runs a Controller look by look, a second each.
type rig struct {
	t    *testing.T
	k    *fake.Clientset
	s    *storage
	c    *Controller
	now  time.Time
	dead []string // nodes whose kubelet is
	did  []string
}

func newRig(t *testing.T, outOfService bool) *rig {
	r := &rig{t: t, k: cluster(t), s: &storage{healthy: true, n1: true}, now: time.Unix(1e9, 0)}
	r.c = New(Options{
		Kubernetes: &Kubernetes{Client: r.k, OutOfService: outOfService}, Tandem: &Tandem{r.s, r.s}, Logger: zap.NewNop(),
		Done: func(a Action) { r.did = append(r.did, strings.TrimSpace(string(a.Kind)+" "+a.Pod.Name)) },
	})
	r.c.Lead(true)
	return r
}

// pass lets so many seconds pass and returns what was done.
func (r *rig) pass(seconds int) []string {
	r.t.Helper()
	r.did = nil
	for range seconds {
		r.now = r.now.Add(time.Second)
		for _, n := range []string{"n1", "n2"} {
			l, err := r.k.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(r.t.Context(), n, metav1.GetOptions{})
			if err != nil {
				r.t.Fatal(err)
			}
			if !slices.Contains(r.dead, n) && r.now.Unix()%10 == 0 || l.Spec.RenewTime == nil {
				l.Spec.RenewTime = &metav1.MicroTime{Time: r.now}
				if _, err := r.k.CoordinationV1().Leases(corev1.NamespaceNodeLease).Update(r.t.Context(), l, metav1.UpdateOptions{}); err != nil {
					r.t.Fatal(err)
				}
			}
		}
		if err := r.c.look(r.t.Context(), r.now); err != nil {
			r.t.Log(err)
		}
	}
	return r.did
}

func (r *rig) node(name string) *corev1.Node {
	r.t.Helper()
	n, err := r.k.CoreV1().Nodes().Get(r.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// driver says whether the kubelet of a node knows the driver.
func (r *rig) driver(name string, known bool) {
	r.t.Helper()
	n := &storagev1.CSINode{ObjectMeta: meta(name)}
	if known {
		n.Spec.Drivers = []storagev1.CSINodeDriver{{Name: Driver, NodeID: "t-" + name}}
	}
	if _, err := r.k.StorageV1().CSINodes().Update(r.t.Context(), n, metav1.UpdateOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) taints(name string) string {
	var keys []string
	for _, t := range r.node(name).Spec.Taints {
		keys = append(keys, t.Key)
	}
	return strings.Join(keys, " ")
}

func (r *rig) want(what string, did []string, want ...string) {
	r.t.Helper()
	if !slices.Equal(did, want) {
		r.t.Errorf("%s: %q was done, want %q", what, did, want)
	}
}

// A node dies and comes back. Its pods with volumes that are elsewhere are deleted, once, and nothing else is touched.
func TestNodeDies(t *testing.T) {
	r := newRig(t, false)
	r.want("all is well", r.pass(60))
	r.dead, r.s.n1 = []string{"n1"}, false
	r.want("it may come back", r.pass(14))
	r.want("lost", r.pass(1), "Mark", "Delete db-0", "Delete scratch", "Release")
	if got := r.node("n1").Status.VolumesInUse; len(got) != 2 || got[0] != "kubernetes.io/csi/other.csi^v" || got[1] != inUsePrefix+"w" {
		t.Errorf("in use on the lost node: %q", got)
	}
	if got := r.taints("n1"); got != "theirs "+Taint {
		t.Errorf("taints of the lost node: %s", got)
	}
	pods, err := r.k.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(pods.Items) != 5 {
		t.Errorf("%d pods are left, %v", len(pods.Items), err)
	}
	r.want("nothing is left to do", r.pass(60))
	r.s.n1 = true
	r.want("its tandemd is back", r.pass(20))
	r.dead = nil
	r.driver("n1", false)
	r.want("its kubelet, too, which does not know the driver yet", r.pass(20))
	r.driver("n1", true)
	r.want("and now it does", r.pass(2), "Unmark")
	r.want("all is well again", r.pass(60))
	if got := r.taints("n1") + ", " + r.taints("n2"); got != "theirs, theirs" {
		t.Errorf("taints at the end: %s", got)
	}
}

// The taint of Kubernetes for nodes that are out of service is put on and taken away with ours, where that is wanted; one that somebody else has put there stays.
func TestOutOfService(t *testing.T) {
	r := newRig(t, true)
	r.pass(20)
	r.dead, r.s.n1 = []string{"n1"}, false
	r.pass(20)
	if got := r.taints("n1"); got != "theirs "+Taint+" "+corev1.TaintNodeOutOfService {
		t.Errorf("taints of the lost node: %s", got)
	}
	n := r.node("n1")
	n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute})
	if _, err := r.k.CoreV1().Nodes().Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.dead, r.s.n1 = nil, true
	r.pass(20)
	if got := r.taints("n1"); got != "theirs "+corev1.TaintNodeOutOfService {
		t.Errorf("taints of the node that is back: %s", got)
	}
}

// Nothing is done while it is not known who is lost, by who does not lead, or for what was silent while nothing could be seen.
func TestNothingIsDone(t *testing.T) {
	for name, change := range map[string]func(r *rig){
		"the kvdb does not answer": func(r *rig) { r.s.healthy = false },
		"another one leads":        func(r *rig) { r.c.Lead(false) },
		"only the kubelet is dead": func(r *rig) { r.s.n1 = true },
		"only tandemd is dead":     func(r *rig) { r.dead = nil },
		"it opted out": func(r *rig) {
			n := r.node("n1")
			n.Labels = map[string]string{OptOut: OptOutValue}
			if _, err := r.k.CoreV1().Nodes().Update(r.t.Context(), n, metav1.UpdateOptions{}); err != nil {
				r.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, false)
			r.pass(20)
			r.dead, r.s.n1 = []string{"n1"}, false
			change(r)
			r.want(name, r.pass(60))
		})
	}
	r := newRig(t, false)
	r.pass(20)
	r.dead, r.s.n1 = []string{"n1"}, false
	r.pass(5)
	r.now = r.now.Add(time.Hour)
	r.want("after an hour without the API server", r.pass(15))
	r.want("and then", r.pass(1), "Mark", "Delete db-0", "Delete scratch", "Release")
}

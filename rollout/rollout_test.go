package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

func TestDecide(t *testing.T) {
	well := Pod{Ready: true, Running: true}
	pod := func(node string, change func(*Pod)) Pod {
		p := well
		p.Name, p.Node = "pod-"+node, node
		change(&p)
		return p
	}
	old, current := func(*Pod) {}, func(p *Pod) { p.Current = true }
	with := func(all ...func(*Pod)) func(*Pod) {
		return func(p *Pod) {
			for _, f := range all {
				f(p)
			}
		}
	}
	ending, unready, lost := func(p *Pod) { p.Ending = true }, func(p *Pod) { p.Ready = false }, func(p *Pod) { p.Lost, p.Ready = true, false }
	dead := func(p *Pod) { p.Ready, p.Running = false, false }
	for name, tc := range map[string]struct {
		pods      []Pod
		missing   int
		dead, old string
		waits     string
	}{
		"nothing to do":              {pods: []Pod{pod("a", current), pod("b", current)}},
		"nothing to do, one is ill":  {pods: []Pod{pod("a", with(current, unready)), pod("b", current)}, missing: 1},
		"all are old":                {pods: []Pod{pod("b", old), pod("a", old)}, old: "a b"},
		"one is done":                {pods: []Pod{pod("b", old), pod("a", current)}, old: "b"},
		"the new one is not Ready":   {pods: []Pod{pod("b", old), pod("a", with(current, unready))}, waits: "pod-a on node a is new and not Ready"},
		"the new one does not run":   {pods: []Pod{pod("b", old), pod("a", with(current, dead))}, waits: "new and not Ready"},
		"one is ending":              {pods: []Pod{pod("b", old), pod("a", ending)}, waits: "pod-a on node a is ending"},
		"one is missing":             {pods: []Pod{pod("b", old)}, missing: 1, waits: "1 pods are missing"},
		"an old one is ill":          {pods: []Pod{pod("a", old), pod("b", with(old, unready))}, old: "b"},
		"an old one does not run":    {pods: []Pod{pod("a", old), pod("b", dead)}, dead: "b", old: "a"},
		"also while a new one is so": {pods: []Pod{pod("a", dead), pod("b", with(current, unready)), pod("c", old)}, dead: "a", waits: "new and not Ready"},
		"a node is lost":             {pods: []Pod{pod("a", lost), pod("b", old), pod("c", with(current, lost)), pod("d", with(ending, lost))}, old: "b"},
	} {
		t.Run(name, func(t *testing.T) {
			p := decide(tc.pods, tc.missing)
			nodes := func(l []Pod) string {
				var s []string
				for _, p := range l {
					s = append(s, p.Node)
				}
				return strings.Join(s, " ")
			}
			if nodes(p.dead) != tc.dead || nodes(p.old) != tc.old || (p.wait == "") != (tc.waits == "") || !strings.Contains(p.wait, tc.waits) {
				t.Errorf("%+v", p)
			}
		})
	}
}

// tandem gives leave but to those that have to wait.
type tandem struct {
	clusterdomainpb.ClusterClient
	waits map[string]string
	err   error
	asked []string
}

func (s *tandem) PlanRestart(_ context.Context, r *clusterdomainpb.PlanRestartRequest, _ ...grpc.CallOption) (*clusterdomainpb.PlanRestartResponse, error) {
	s.asked = append(s.asked, r.GetNode())
	w, ok := s.waits[r.GetNode()]
	if !ok {
		return &clusterdomainpb.PlanRestartResponse{Granted: true}, s.err
	}
	return &clusterdomainpb.PlanRestartResponse{Waits: []string{w}}, s.err
}

const namespace = "tandem-system"

var yes = true

// owned is the metadata of what a DaemonSet has, of a revision.
func owned(name, set, hash string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: namespace, Name: name, UID: types.UID("uid-" + name), OwnerReferences: []metav1.OwnerReference{{UID: types.UID(set), Controller: &yes}},
		Labels: map[string]string{"app.kubernetes.io/name": "tandem", "app.kubernetes.io/component": "node", appsv1.ControllerRevisionHashLabelKey: hash},
	}
}

func podObject(node, set, hash string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: owned("pod-"+node, set, hash), Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{
				{Name: "other"}, {Name: container, Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
			},
		},
	}
}

// cluster has two sets: north with nodes n1 and n2, and south with s1, all of the revision before the newest one; and what is no business of the package.
func cluster(t *testing.T) *fake.Clientset {
	t.Helper()
	c := fake.NewClientset(podObject("n1", "north", "old"), podObject("n2", "north", "old"), podObject("s1", "south", "back"), podObject("x", "nobody", "old"))
	for set, pods := range map[string]int32{"north": 2, "south": 1} {
		m := owned(set, "", "")
		m.UID, m.OwnerReferences, m.Generation = types.UID(set), nil, 2
		for _, err := range []error{
			c.Tracker().Add(&appsv1.DaemonSet{
				ObjectMeta: m, Spec: appsv1.DaemonSetSpec{UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}},
				Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: pods, ObservedGeneration: 2},
			}),
			c.Tracker().Add(&appsv1.ControllerRevision{ObjectMeta: owned(set+"-1", set, "old"), Revision: 1}),
			c.Tracker().Add(&appsv1.ControllerRevision{ObjectMeta: owned(set+"-3", set, "new"), Revision: 3}), // of a roll back, before the second one
			c.Tracker().Add(&appsv1.ControllerRevision{ObjectMeta: owned(set+"-2", set, "back"), Revision: 2}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}

func TestLook(t *testing.T) {
	k, s := cluster(t), &tandem{waits: map[string]string{"n1": "last copy", "n2": "last copy"}}
	c := New(Options{Kubernetes: &Kubernetes{Client: k, Namespace: namespace}, Tandem: s, Logger: zaptest.NewLogger(t)})
	c.Lead(true)
	// look wants one look to end like this: pods are those that are there.
	look := func(pods string, says string) {
		t.Helper()
		waits, err := c.look(t.Context())
		c.say(waits, err)
		if err != nil {
			waits = err.Error()
		}
		list, err := k.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var there []string
		for _, p := range list.Items {
			there = append(there, p.Spec.NodeName)
		}
		slices.Sort(there)
		if fmt.Sprint(there) != "["+pods+"]" || (waits == "") != (says == "") || !strings.Contains(waits, says) {
			t.Fatalf("pods on %v, says %q", there, waits)
		}
	}
	again := func(node, set string) {
		t.Helper()
		if _, err := k.CoreV1().Pods(namespace).Create(t.Context(), podObject(node, set, "new"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	s.err = status.Error(codes.Unavailable, "no kvdb")
	look("n1 n2 s1 x", "no kvdb")
	s.err = nil
	look("n1 n2 x", "") // the order of the nodes, but n1 and n2 have to wait
	look("n1 n2 x", "1 pods are missing")
	again("s1", "south")
	look("n1 n2 s1 x", "node n1: last copy; node n2: last copy")
	delete(s.waits, "n1")
	c.Lead(false)
	look("n1 n2 s1 x", "") // it does not act any more
	c.Lead(true)
	look("n2 s1 x", "")
	again("n1", "north")
	s.err = status.Error(codes.NotFound, "no such node")
	look("n1 s1 x", "")
	again("n2", "north")
	asked := len(s.asked)
	look("n1 n2 s1 x", "")
	if len(s.asked) != asked {
		t.Errorf("leave was asked though nothing is old: %v", s.asked)
	}
}

// TestUnsettled: while the DaemonSet controller has not seen a change nobody knows what is old, and what is not OnDelete is left to it.
func TestUnsettled(t *testing.T) {
	for name, change := range map[string]func(*appsv1.DaemonSet){
		"not seen yet":    func(d *appsv1.DaemonSet) { d.Generation++ },
		"no revision":     func(d *appsv1.DaemonSet) { d.UID = "anew" },
		"rolls by itself": func(d *appsv1.DaemonSet) { d.Spec.UpdateStrategy.Type = appsv1.RollingUpdateDaemonSetStrategyType },
	} {
		t.Run(name, func(t *testing.T) {
			k, s := cluster(t), &tandem{}
			for _, set := range []string{"north", "south"} {
				d, err := k.AppsV1().DaemonSets(namespace).Get(t.Context(), set, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				change(d)
				if _, err := k.AppsV1().DaemonSets(namespace).Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			c := New(Options{Kubernetes: &Kubernetes{Client: k, Namespace: namespace}, Tandem: s, Logger: zaptest.NewLogger(t)})
			c.Lead(true)
			if waits, err := c.look(t.Context()); waits != "" || err != nil || s.asked != nil {
				t.Errorf("%q, %v, asked %v", waits, err, s.asked)
			}
		})
	}
}

// TestLostNode: what the kubelet said last is not believed of a node that somebody else has declared lost.
func TestLostNode(t *testing.T) {
	p := podObject("n1", "north", "old")
	p.Status.Conditions[0].Status = corev1.ConditionFalse
	if o := podOf(p, "new"); !o.Lost {
		t.Errorf("%+v", o)
	}
	p.Status.ContainerStatuses[1].Ready = false
	if o := podOf(p, "new"); o.Lost || o.Ready || !o.Running {
		t.Errorf("not Ready: %+v", o)
	}
	p.Status.ContainerStatuses[1].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	if o := podOf(p, "old"); o.Running || !o.Current {
		t.Errorf("crashed: %+v", o)
	}
}

// TestRun: it looks while it leads.
func TestRun(t *testing.T) {
	k, s := cluster(t), &tandem{}
	c := New(Options{Kubernetes: &Kubernetes{Client: k, Namespace: namespace}, Tandem: s, Every: time.Millisecond, Logger: zaptest.NewLogger(t)})
	w, err := k.CoreV1().Pods(namespace).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	c.Lead(true)
	for e := range w.ResultChan() {
		if e.Type == watch.Deleted { // the others are those that were there
			break
		}
	}
	cancel(errors.New("enough"))
	<-done
}

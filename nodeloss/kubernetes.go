package nodeloss

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	// Driver is the name of the CSI driver.
	Driver = "csi.tandem.storage"
	// OptOut is the label of nodes and pods that are left to Kubernetes, if it has the value OptOutValue.
	OptOut = "tandem.storage/node-loss"
	// OptOutValue is the one that OptOut has.
	OptOutValue = "ignore"
	// Taint keeps pods off a node that is lost.
	Taint = "tandem.storage/node-lost"

	inUsePrefix = "kubernetes.io/csi/" + Driver + "^"
	// fromCache lets the API server answer from what it has in memory.
	fromCache = "0"
)

// Kubernetes is what is read from and done in Kubernetes.
type Kubernetes struct {
	Client kubernetes.Interface
	// OutOfService puts the taint node.kubernetes.io/out-of-service on lost nodes, too: pods without volumes of the driver, and those of
	// other drivers, are moved as well. Those drivers have to fence by themselves.
	OutOfService bool
}

// renewals are the leases of the kubelets.
func (k *Kubernetes) renewals(ctx context.Context) (map[string]time.Time, error) {
	ls, err := k.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).List(ctx, metav1.ListOptions{ResourceVersion: fromCache})
	if err != nil {
		return nil, fmt.Errorf("list the leases of nodes: %w", err)
	}
	renewed := map[string]time.Time{}
	for _, l := range ls.Items {
		if l.Spec.RenewTime != nil {
			renewed[l.Name] = l.Spec.RenewTime.Time
		}
	}
	return renewed, nil
}

// nodes are those where the driver is, and those that are marked: while a node comes back its kubelet does not know the driver yet.
func (k *Kubernetes) nodes(ctx context.Context, silent map[string]time.Duration) ([]Node, error) {
	drivers, err := k.Client.StorageV1().CSINodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the drivers of nodes: %w", err)
	}
	tandem := map[string]string{}
	for _, n := range drivers.Items {
		for _, d := range n.Spec.Drivers {
			if d.Name == Driver {
				tandem[n.Name] = d.NodeID
			}
		}
	}
	list, err := k.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var ns []Node
	for _, n := range list.Items {
		s, ok := silent[n.Name]
		marked := slices.ContainsFunc(n.Spec.Taints, ours)
		if !marked && (!ok || tandem[n.Name] == "") {
			continue
		}
		ns = append(ns, Node{
			Name: n.Name, Tandem: tandem[n.Name], Silent: s, Ignored: n.Labels[OptOut] == OptOutValue,
			Marked: marked, InUse: inUse(n.Status.VolumesInUse),
		})
	}
	return ns, nil
}

// ours reports whether a taint is one that this package puts on nodes.
func ours(t corev1.Taint) bool {
	return t.Key == Taint || t.Key == corev1.TaintNodeOutOfService && t.Value == Driver
}

// inUse are the handles among the names of volumes.
func inUse(names []corev1.UniqueVolumeName) []string {
	var hs []string
	for _, n := range names {
		if h, ok := strings.CutPrefix(string(n), inUsePrefix); ok {
			hs = append(hs, h)
		}
	}
	return hs
}

// pods are those of these nodes that use volumes of the driver, and the handles of all of those.
func (k *Kubernetes) pods(ctx context.Context, nodes []string) ([]Pod, error) {
	pvs, err := k.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	handles := map[types.NamespacedName]string{}
	for _, v := range pvs.Items {
		if s, c := v.Spec.CSI, v.Spec.ClaimRef; s != nil && s.Driver == Driver && c != nil {
			handles[types.NamespacedName{Namespace: c.Namespace, Name: c.Name}] = s.VolumeHandle
		}
	}
	var all []Pod
	for _, n := range nodes {
		ps, err := k.Client.CoreV1().Pods(corev1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", n).String()})
		if err != nil {
			return nil, fmt.Errorf("list the pods of node %s: %w", n, err)
		}
		for i := range ps.Items {
			if p := podOf(&ps.Items[i], handles); p.Node == n && len(p.Handles) > 0 {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

func podOf(p *corev1.Pod, handles map[types.NamespacedName]string) Pod {
	o := metav1.GetControllerOf(p)
	pod := Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName,
		Ignored: p.Labels[OptOut] == OptOutValue || o != nil && o.Kind == "DaemonSet",
	}
	for _, v := range p.Spec.Volumes {
		claim := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			claim = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			claim = p.Name + "-" + v.Name // the name that Kubernetes gives it
		}
		if h := handles[types.NamespacedName{Namespace: p.Namespace, Name: claim}]; h != "" {
			pod.Handles = append(pod.Handles, h)
		}
	}
	return pod
}

// apply does one thing. What somebody else has changed meanwhile is an error, and decided anew.
func (k *Kubernetes) apply(ctx context.Context, a Action) error {
	switch a.Kind {
	case Mark, Unmark:
		return k.taint(ctx, a)
	case Delete:
		now, uid := int64(0), types.UID(a.Pod.UID)
		err := k.Client.CoreV1().Pods(a.Pod.Namespace).Delete(ctx, a.Pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // gone, or another one by now
			return fmt.Errorf("delete pod %s/%s of node %s: %w", a.Pod.Namespace, a.Pod.Name, a.Node, err)
		}
		return nil
	case Release:
		return k.release(ctx, a)
	}
	return nil
}

func (k *Kubernetes) taint(ctx context.Context, a Action) error {
	n, err := k.Client.CoreV1().Nodes().Get(ctx, a.Node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read node %s: %w", a.Node, err)
	}
	taints := slices.DeleteFunc(slices.Clone(n.Spec.Taints), ours)
	if a.Kind == Mark {
		taints = append(taints, corev1.Taint{Key: Taint, Effect: corev1.TaintEffectNoSchedule})
		if k.OutOfService {
			taints = append(taints, corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: Driver, Effect: corev1.TaintEffectNoExecute})
		}
	}
	return k.patch(ctx, n, map[string]any{"spec": map[string]any{"taints": taints}})
}

// release takes volumes off the list of what the node uses, which its kubelet wrote last. The attach-detach controller waits for
// minutes for a kubelet to do so itself.
func (k *Kubernetes) release(ctx context.Context, a Action) error {
	n, err := k.Client.CoreV1().Nodes().Get(ctx, a.Node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read node %s: %w", a.Node, err)
	}
	rest := slices.DeleteFunc(slices.Clone(n.Status.VolumesInUse), func(v corev1.UniqueVolumeName) bool {
		h, ok := strings.CutPrefix(string(v), inUsePrefix)
		return ok && !slices.Contains(a.Handles, h)
	})
	return k.patch(ctx, n, map[string]any{"status": map[string]any{"volumesInUse": rest}}, "status")
}

// patch changes a node, unless it was changed since it was read.
func (k *Kubernetes) patch(ctx context.Context, n *corev1.Node, change map[string]any, subresources ...string) error {
	patch := map[string]any{"metadata": map[string]any{"resourceVersion": n.ResourceVersion}}
	maps.Copy(patch, change)
	data, err := json.Marshal(patch)
	if err == nil {
		_, err = k.Client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, data, metav1.PatchOptions{}, subresources...)
	}
	if err != nil {
		return fmt.Errorf("change node %s: %w", n.Name, err)
	}
	return nil
}

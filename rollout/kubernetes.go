package rollout

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	// selector finds the pods of tandemd, and their DaemonSets.
	selector = "app.kubernetes.io/name=tandem,app.kubernetes.io/component=node"
	// container is that of tandemd.
	container = "tandemd"
)

// Kubernetes is what is read from and done in Kubernetes.
type Kubernetes struct {
	Client    kubernetes.Interface
	Namespace string
}

// pods are those of tandemd, and how many there are too few. settled is false while the DaemonSet controller has not seen the latest change yet.
func (k *Kubernetes) pods(ctx context.Context) (pods []Pod, missing int, settled bool, err error) {
	o := metav1.ListOptions{LabelSelector: selector}
	sets, err := k.Client.AppsV1().DaemonSets(k.Namespace).List(ctx, o)
	if err != nil {
		return nil, 0, false, fmt.Errorf("list the DaemonSets of tandemd: %w", err)
	}
	revisions, err := k.Client.AppsV1().ControllerRevisions(k.Namespace).List(ctx, o)
	if err != nil {
		return nil, 0, false, fmt.Errorf("list the revisions of tandemd: %w", err)
	}
	list, err := k.Client.CoreV1().Pods(k.Namespace).List(ctx, o)
	if err != nil {
		return nil, 0, false, fmt.Errorf("list the pods of tandemd: %w", err)
	}
	newest := map[types.UID]string{}
	for _, s := range sets.Items {
		if s.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
			continue // Kubernetes does it
		}
		hash := newestOf(s.UID, revisions.Items)
		if s.Status.ObservedGeneration < s.Generation || hash == "" {
			return nil, 0, false, nil
		}
		newest[s.UID] = hash
		missing += int(s.Status.DesiredNumberScheduled)
	}
	for i := range list.Items {
		p := &list.Items[i]
		owner := metav1.GetControllerOf(p)
		if owner == nil || newest[owner.UID] == "" {
			continue
		}
		missing--
		pods = append(pods, podOf(p, newest[owner.UID]))
	}
	return pods, max(missing, 0), true, nil
}

// newestOf is the hash of the newest revision of a DaemonSet, "" if it has none yet.
func newestOf(set types.UID, revisions []appsv1.ControllerRevision) (hash string) {
	last := int64(-1)
	for _, r := range revisions {
		if o := metav1.GetControllerOf(&r); o != nil && o.UID == set && r.Revision > last {
			last, hash = r.Revision, r.Labels[appsv1.ControllerRevisionHashLabelKey]
		}
	}
	return hash
}

func podOf(p *corev1.Pod, newest string) Pod {
	pod := Pod{
		Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName,
		Current: p.Labels[appsv1.ControllerRevisionHashLabelKey] == newest, Ending: p.DeletionTimestamp != nil,
	}
	for _, c := range p.Status.Conditions {
		pod.Ready = pod.Ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == container {
			pod.Running = c.State.Running != nil
			pod.Lost = c.Ready && !pod.Ready // somebody else has said so for the kubelet
		}
	}
	return pod
}

// delete deletes a pod, which its DaemonSet makes anew. One that is gone, or another one by now, is left.
func (k *Kubernetes) delete(ctx context.Context, p Pod) error {
	uid := types.UID(p.UID)
	err := k.Client.CoreV1().Pods(k.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete pod %s: %w", p.Name, err)
	}
	return nil
}

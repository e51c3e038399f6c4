// Package kube runs real Kubernetes clusters for tests, on one machine, without a registry and without systemd.
//
// A node is a set of namespaces (network, mount, process, host name, IPC) with containerd and a kubelet in it; the first one of a cluster
// has the control plane as well. All nodes of a World hang on one bridge in a network of its own, so that nothing of the host's changes, and pods of
// all clusters in it reach each other's nodes. The first process of a node is command nodeinit: when it ends, everything in the node does, mounts
// and containers included, and it ends with the process of the test, however that came about. It sees no file system of the machine but those that it needs,
// so that it keeps none alive that others have unmounted.
//
// The programs are built from Go modules (directory tools); containerd, runc and the network plugins are Debian's. Images are made
// of files of this machine (Image) and put into each node when it starts.
//
// Needs root, and control groups of version 1: the cgroup driver of the kubelet is cgroupfs, and each cluster has a root of its own in
// every hierarchy, because a kubelet removes the groups of pods that it does not know.
package kube

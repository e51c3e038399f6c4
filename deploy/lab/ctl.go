package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
)

// Ctl runs tandemctl against a node and returns its standard output.
func (c *Cluster) Ctl(ctx context.Context, n *Node, args ...string) (string, error) {
	return Run(ctx, append([]string{filepath.Join(c.spec.Bin, "tandemctl"), "--endpoint", n.Socket}, args...)...)
}

// CtlShown is Ctl for commands that wait: what they tell of their progress goes to w.
func (c *Cluster) CtlShown(ctx context.Context, w io.Writer, n *Node, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.spec.Bin, "tandemctl"), append([]string{"--endpoint", n.Socket}, args...)...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = childAttr(nil)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("tandemctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// VolumeView is what is read of `volume inspect -o json`.
type VolumeView struct {
	Volume struct {
		ID           string        `json:"id"`
		Epoch        int64         `json:"epoch,string"`
		Unreconciled int64         `json:"unreconciled_bytes,string"`
		Replicas     []ReplicaView `json:"replicas"`
		Attachment   struct {
			Node string `json:"node"` // "": detached
		} `json:"attachment"`
	} `json:"volume"`
}

// ReplicaView is one replica of a VolumeView.
type ReplicaView struct {
	ID          string `json:"id"`
	Node        string `json:"node"`
	Domain      string `json:"domain"`
	State       string `json:"state"`
	InSync      bool   `json:"in_sync"`
	ResyncDone  int64  `json:"resync_done_bytes,string"`
	ResyncTotal int64  `json:"resync_total_bytes,string"`
	ResyncWaits bool   `json:"resync_waits"`
}

// Inspect asks a node for a volume.
func (c *Cluster) Inspect(ctx context.Context, n *Node, volume string) (*VolumeView, error) {
	out, err := c.Ctl(ctx, n, "volume", "inspect", volume, "-o", "json")
	if err != nil {
		return nil, err
	}
	var v VolumeView
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return nil, fmt.Errorf("volume inspect printed %.200q: %w", out, err)
	}
	return &v, nil
}

// Attach attaches the volume on a node and returns what a consumer opens.
func (c *Cluster) Attach(ctx context.Context, n *Node, volume string) (string, error) {
	out, err := c.Ctl(ctx, n, "host", "attach", volume, "-o", "json")
	if err != nil {
		return "", err
	}
	var a struct {
		Path string `json:"path"`
	}
	if err := json.Unmarshal([]byte(out), &a); err != nil || a.Path == "" {
		return "", fmt.Errorf("host attach printed %.200q: %w", out, err)
	}
	return a.Path, nil
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// ctl runs tandemctl against a node and returns its standard output.
func (c *cluster) ctl(ctx context.Context, n *node, args ...string) (string, error) {
	return run(ctx, append([]string{filepath.Join(c.bin, "tandemctl"), "--endpoint", n.socket}, args...)...)
}

// ctlShown is ctl for commands that wait: what they tell of their progress goes to w.
func (c *cluster) ctlShown(ctx context.Context, w io.Writer, n *node, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "tandemctl"), append([]string{"--endpoint", n.socket}, args...)...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("tandemctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// volumeView is what the demo reads of `volume inspect -o json`.
type volumeView struct {
	Volume struct {
		ID       string `json:"id"`
		Replicas []struct {
			ID     string `json:"id"`
			Node   string `json:"node"`
			Domain string `json:"domain"`
			Pool   string `json:"pool"`
			InSync bool   `json:"in_sync"`
		} `json:"replicas"`
	} `json:"volume"`
}

func (c *cluster) inspect(ctx context.Context, n *node, volume string) (*volumeView, error) {
	out, err := c.ctl(ctx, n, "volume", "inspect", volume, "-o", "json")
	if err != nil {
		return nil, err
	}
	var v volumeView
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return nil, fmt.Errorf("volume inspect printed %.200q: %w", out, err)
	}
	return &v, nil
}

// attach attaches the volume on a node and returns what a consumer opens.
func (c *cluster) attach(ctx context.Context, n *node, volume string) (string, error) {
	out, err := c.ctl(ctx, n, "host", "attach", volume, "-o", "json")
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

// pkiInit makes the throw-away CA of the cluster.
func (c *cluster) pkiInit(ctx context.Context, dir string) error {
	_, err := run(ctx, filepath.Join(c.bin, "tandemctl"), "pki", "init", "--cluster", "demo", "--dir", dir)
	return err
}

// pkiIssue makes the certificate of a node.
func (c *cluster) pkiIssue(ctx context.Context, ca string, n *node) error {
	_, err := run(ctx, filepath.Join(c.bin, "tandemctl"), "pki", "issue", "--ca-dir", ca, "--cluster", "demo",
		"--domain", n.site, "--node", n.name, "--host", "127.0.0.1", "--out", filepath.Join(n.dir, "pki"))
	return err
}

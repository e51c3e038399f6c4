package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

func (a *app) hostAttachCommand() *cobra.Command {
	var frontend, node string
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "attach VOLUME",
		Short: "Show a volume as a block device on a node",
		Long: `Show a volume as a block device on the node whose tandemd is asked, and print what to open: a device like /dev/loop0
(front ends fuseloop and device) or an NBD URI (front end nbd). Attaching again where it is attached prints the same. An NBD URI is of
one attachment: after it has ended, a client that connects again is refused, and the next attach prints another.

A volume is attached on one node at a time. When that node is lost, attach elsewhere as soon as it is shown OFFLINE, after
some ten seconds; if it is cut off and may still be running, deactivate its domain with --peer-lost first. One that is
still being detached on the node is waited for and attached anew.`,
		Args: oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if frontend != "" && frontend != string(config.FrontendFuseLoop) && frontend != string(config.FrontendDevice) && frontend != string(config.FrontendNBD) {
				return usageError("--frontend %q: use %s, %s or %s", frontend, config.FrontendFuseLoop, config.FrontendDevice, config.FrontendNBD)
			}
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.AttachVolume(ctx, &pb.AttachVolumeRequest{
				Volume: args[0], Frontend: frontend, Node: node, Reason: order.reason, Actor: a.actor(), ExpectedEpoch: order.expected(cmd),
			})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { fmt.Fprintf(w, "Volume successfully attached at: %s\n", resp.GetPath()) })
		},
	}
	cmd.Flags().StringVar(&frontend, "frontend", "", "`kind` of device: fuseloop, device or nbd (default: as the node is configured)")
	cmd.Flags().StringVar(&node, "node", "", "refuse unless the tandemd that is asked is this `node`")
	order.add(cmd)
	order.addEpoch(cmd, "volume", "volume inspect")
	return cmd
}

func (a *app) hostDetachCommand() *cobra.Command {
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "detach VOLUME",
		Short: "Take a volume's block device away",
		Long: `Take a volume's block device away, after all its requests have ended. A device that is mounted or open is refused. Detaching
a volume that is not attached changes nothing.

A detach needs the kvdb and the in-sync replicas. When they do not answer before --timeout the device is gone already, and
the detach goes on by itself on the node until it is done; it cannot be taken back. "tandemctl volume inspect" names what
it waits for. Detaching again waits again; attaching on the same node waits for its end and attaches anew.`,
		Args: oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.DetachVolume(ctx, &pb.DetachVolumeRequest{Volume: args[0], Reason: order.reason, Actor: a.actor(), ExpectedEpoch: order.expected(cmd)})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { fmt.Fprintf(w, "Volume %s successfully detached\n", args[0]) })
		},
	}
	order.add(cmd)
	order.addEpoch(cmd, "volume", "volume inspect")
	return cmd
}

// mountResult is the JSON answer of mount and unmount.
type mountResult struct {
	Volume  string `json:"volume"`
	Device  string `json:"device"`
	Path    string `json:"path"`
	Mounted bool   `json:"mounted"`
	Changed bool   `json:"changed"` // false: it was so already
}

func (a *app) printMount(r mountResult, text string) error {
	if a.flags.output != outputJSON {
		fmt.Fprintln(a.stdout, text)
		return nil
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("tandemctl: cannot write the answer as JSON: %w", err)
	}
	return a.printJSON(data)
}

func (a *app) hostMountCommand() *cobra.Command {
	var path, fs, options string
	cmd := &cobra.Command{
		Use:   "mount VOLUME --path DIR",
		Short: "Mount an attached volume on this machine",
		Long: `Mount the file system of an attached volume on this machine, with mount(8). The volume must be attached here as a
block device and hold a file system already: tandemctl never makes one. Mounting it where it is mounted changes nothing.`,
		Example: `  tandemctl host attach data          # prints /dev/loop0
  mkfs.xfs /dev/loop0                 # once
  tandemctl host mount data --path /mnt/data`,
		Args: oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := cleanDir(path)
			if err != nil {
				return err
			}
			device, err := a.localDevice(cmd, args[0])
			if err != nil {
				return err
			}
			r := mountResult{Volume: args[0], Device: device, Path: dir, Mounted: true}
			there, err := a.mountedAt(dir)
			switch {
			case err != nil:
				return err
			case there == device:
				return a.printMount(r, fmt.Sprintf("Volume %s is mounted at %s already", args[0], dir))
			case there != "":
				return stateError("choose another directory, or unmount it first", "%s is mounted at %s", there, dir)
			}
			argv := []string{"--source", device, "--target", dir}
			if fs != "" {
				argv = append(argv, "--types", fs)
			}
			if options != "" {
				argv = append(argv, "--options", options)
			}
			if out, err := a.exec(cmd.Context(), "mount", argv...); err != nil {
				return stateError("if the volume is new, make a file system first, for example: mkfs.xfs "+device,
					"mount %s: %v: %s", strings.Join(argv, " "), err, oneLine(out))
			}
			r.Changed = true
			return a.printMount(r, fmt.Sprintf("Volume %s successfully mounted at %s", args[0], dir))
		},
	}
	cmd.Flags().StringVar(&path, "path", "", "existing `directory` to mount it at")
	cmd.Flags().StringVar(&fs, "fs", "", "`type` of its file system, as in xfs (default: mount(8) looks)")
	cmd.Flags().StringVar(&options, "options", "", "mount `options`, as in noatime,discard")
	_ = cmd.MarkFlagRequired("path") // the flag is there: see above
	return cmd
}

func (a *app) hostUnmountCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "unmount VOLUME --path DIR",
		Short: "Unmount a volume on this machine",
		Long:  `Unmount a volume on this machine, with umount(8). What is mounted at the directory must be the volume. Nothing mounted there is no error.`,
		Args:  oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := cleanDir(path)
			if err != nil {
				return err
			}
			there, err := a.mountedAt(dir)
			if err != nil {
				return err
			}
			r := mountResult{Volume: args[0], Path: dir}
			if there == "" {
				return a.printMount(r, fmt.Sprintf("Nothing is mounted at %s", dir))
			}
			device, err := a.localDevice(cmd, args[0])
			var ce *cliError
			if errors.As(err, &ce) && ce.exit == rpcstatus.ExitPrecondition {
				ce.hint = there + " is mounted there: if that is what is left of the volume, use umount(8)"
			}
			if err != nil {
				return err
			}
			if there != device {
				return stateError("name the volume that is mounted there, or use umount(8)", "%s is mounted at %s, not volume %s (%s)", there, dir, args[0], device)
			}
			if out, err := a.exec(cmd.Context(), "umount", dir); err != nil {
				return stateError("see with fuser -vm "+dir+" who uses it", "umount %s: %v: %s", dir, err, oneLine(out))
			}
			r.Device, r.Changed = device, true
			return a.printMount(r, fmt.Sprintf("Volume %s successfully unmounted from %s", args[0], dir))
		},
	}
	cmd.Flags().StringVar(&path, "path", "", "`directory` where it is mounted")
	_ = cmd.MarkFlagRequired("path") // the flag is there: see above
	return cmd
}

// localDevice returns the block device of a volume that is attached on this machine.
// The device's name means nothing on another machine, so the daemon must be asked over its socket, and be the
// one that has the volume.
func (a *app) localDevice(cmd *cobra.Command, name string) (string, error) {
	if _, ok := unixPath(a.endpoint()); !ok {
		return "", usageError("mounting is done on this machine: --endpoint must be the unix socket of its tandemd, not %s", a.endpoint())
	}
	resp, err := a.inspect(cmd.Context(), name)
	if err != nil {
		return "", err
	}
	at := resp.GetVolume().GetAttachment()
	if at == nil {
		return "", stateError("attach it first: tandemctl host attach "+name, "volume %s is not attached", name)
	}
	client, err := a.cluster()
	if err != nil {
		return "", err
	}
	ctx, cancel := a.withTimeout(cmd.Context())
	defer cancel()
	s, err := client.GetStatus(ctx, &clusterdomainpb.GetStatusRequest{})
	if err != nil {
		return "", err
	}
	if at.GetNode() != s.GetThisNode() {
		return "", stateError("mount it there, or detach it there and attach it here",
			"volume %s is attached on node %s, this is %s", name, at.GetNode(), s.GetThisNode())
	}
	if !filepath.IsAbs(at.GetPath()) {
		return "", stateError("detach it and attach it with --frontend fuseloop",
			"volume %s is attached by %s as %q, which is no block device", name, at.GetFrontend(), at.GetPath())
	}
	if err := a.isBlockDevice(at.GetPath()); err != nil {
		return "", stateError("is this the machine of node "+at.GetNode()+"?", "volume %s: %v", name, err)
	}
	return at.GetPath(), nil
}

// cleanDir checks --path, and returns it as the kernel shows it in the list of mounts.
func cleanDir(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", usageError("--path %q is not an absolute path", path)
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved, nil
	}
	return filepath.Clean(path), nil // it is not there: mount(8) says so best
}

func oneLine(out string) string {
	return strings.Join(strings.Fields(out), " ")
}

func (a *app) hostUnpublishCommand() *cobra.Command {
	var node string
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "unpublish VOLUME --node NODE",
		Short: "Take back the promise of a volume to a node, made through CSI",
		Long: `Take back the promise of a volume to a node, made through CSI for an orchestrator's consumer: another node may be promised the
volume then. An orchestrator does that by itself when it has ended the consumer. This is for the case that it cannot, because it was
lost with the node, and another one is to go on with the volume.

It is refused while the node answers and has the volume attached. If the node runs on without being heard, nothing is lost: who attaches next
takes over, and the node can write no more. A volume that is not promised to the node is left as it is.`,
		Example: `  tandemctl host unpublish pvc-1 --node n1 --reason "site north burnt down"`,
		Args:    oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.UnpublishVolume(ctx, &pb.UnpublishVolumeRequest{Volume: args[0], Node: node, Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { fmt.Fprintf(w, "Volume %s is not promised to node %s\n", args[0], node) })
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "`name` of the node that the volume is promised to")
	_ = cmd.MarkFlagRequired("node") // the flag is there: see above
	order.add(cmd)
	return cmd
}

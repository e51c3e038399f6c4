package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// oneName wants exactly one argument.
func oneName(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return usageError("%s is missing", what)
		case len(args) > 1:
			return usageError("one %s at a time: %q is too much", what, args[1])
		case args[0] == "":
			return usageError("%s is empty", what)
		}
		return nil
	}
}

func (a *app) volumeCreateCommand() *cobra.Command {
	var size, failover, domains, groupName string
	var p protectionFlags
	var l limitFlags
	var place placingFlags
	var priority priorityFlag
	var replicas uint32
	var labels map[string]string
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Create a volume",
		Long: `Create a volume, and return when all its replicas are made. Space is taken as it is written, or at once with --thick.

Replicas go to different nodes, one to each domain before a second to any, where most room is. --nodes, --pool-class, --spread, --near and --apart narrow
that down by the labels and classes in the configuration of nodes, and by the labels of other volumes. They count when a replica is
placed, now or in the place of another one: labels that change later move nothing.

Creating a volume that exists with the same parameters succeeds and changes nothing.`,
		Example: `  tandemctl volume create data --size 2GiB --replicas 2
  tandemctl volume create ledger --size 100Gi --replicas 2 --protection max-protection --domains primary,dr-site
  tandemctl volume create orders --size 20Gi --nodes disk=nvme --pool-class fast --spread rack --apart app=ledger`,
		Args: oneName("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			bytes, err := config.ParseSize(size)
			if err != nil {
				return usageError("--size: %s", strings.TrimPrefix(err.Error(), "config: "))
			}
			if bytes <= 0 {
				return usageError("--size: a volume must be larger than 0")
			}
			var mode pb.Protection
			var needs pb.Needs
			if err := p.apply(cmd.Flags(), &mode, &needs); err != nil {
				return err
			}
			var limits pb.Limits
			if err := l.apply(cmd.Flags(), &limits); err != nil {
				return err
			}
			resyncs, err := priority.value(cmd.Flags())
			if err != nil {
				return err
			}
			if failover != "automatic" && failover != "manual" {
				return usageError("--failover %q: use automatic or manual", failover)
			}
			in := splitList(domains)
			if cmd.Flags().Changed("domains") && len(in) == 0 {
				return usageError("--domains names no domain")
			}
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.CreateVolume(ctx, &pb.CreateVolumeRequest{
				Name: args[0], SizeBytes: int64(bytes), Replicas: replicas, Protection: mode, Labels: labels, Domains: in,
				Reason: order.reason, Actor: a.actor(),
				Needs:          needsOrNil(&needs),
				ManualFailover: failover == "manual",
				Limits:         limitsOrNil(&limits),
				Placing:        place.message(), Thick: place.thick, Group: groupName, ResyncPriority: resyncs,
			})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				fmt.Fprintf(w, "Volume successfully created: %s (id %s)\n", resp.GetVolume().GetName(), resp.GetVolume().GetId())
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&size, "size", "s", "", "`size` with a binary unit, as in 512Mi or 2GiB; a multiple of 4Ki")
	f.Uint32VarP(&replicas, "replicas", "r", 0, "number of replicas, 1 to 3; 0: one in each domain that can take one, at most 3")
	p.register(f)
	l.register(f)
	place.register(f)
	priority.register(f)
	f.StringVar(&failover, "failover", "automatic", "`who` attaches it elsewhere when the domain is lost where it is attached: automatic, or manual for an operator")
	f.StringVar(&domains, "domains", "", "place replicas in these `domains` only, with commas")
	f.StringVar(&groupName, "group", "", "the consistency `group` that it is in until it is deleted; made with it, with its --failover, if there is none of that name")
	f.StringToStringVarP(&labels, "label", "l", nil, "labels, as in `app=db,tier=1`")
	order.add(cmd)
	_ = cmd.MarkFlagRequired("size") // the flag is there: see above
	return cmd
}

func (a *app) volumeListCommand() *cobra.Command {
	var req pb.ListVolumesRequest
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the volumes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			l, err := client.ListVolumes(ctx, &req)
			if err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) { volumesTable(w, l) })
		},
	}
	cmd.Flags().StringVar(&req.Node, "node", "", "only volumes that are attached or have a replica on this `node`")
	cmd.Flags().StringToStringVarP(&req.Labels, "label", "l", nil, "only volumes with all of these labels, as in `app=db,tier=1`")
	return cmd
}

func volumesTable(w io.Writer, l *pb.ListVolumesResponse) {
	rows := [][]string{{"ID", "NAME", "SIZE", "IN SYNC", "PROTECTION", "LEFT", "STATUS"}}
	for _, v := range l.GetVolumes() {
		rows = append(rows, []string{v.GetId(), v.GetName(), bytesText(v.GetSizeBytes()),
			fmt.Sprintf("%d of %d", v.GetInSync(), v.GetReplicasWanted()), protectionText(v.GetProtection()), missingOf(v).text(v), volumeStatus(v)})
	}
	table(w, rows...)
	if len(l.GetOrphans()) > 0 {
		fmt.Fprintln(w, "\nReplicas that no volume claims (they are never removed by themselves):")
		rows := [][]string{{"NODE", "POOL", "VOLUME ID", "REPLICA ID", "TEXT"}}
		for _, o := range l.GetOrphans() {
			rows = append(rows, []string{o.GetNode(), o.GetPool(), o.GetVolumeId(), o.GetReplicaId(), o.GetText()})
		}
		table(w, rows...)
	}
}

func failoverText(v *pb.Volume) string {
	if v.GetManualFailover() {
		return "manual"
	}
	return "automatic"
}

// volumeStatus is one word, and where the volume is attached.
func volumeStatus(v *pb.Volume) string {
	word := "up"
	switch {
	case v.GetPhase() == pb.Phase_PHASE_CREATING, v.GetPhase() == pb.Phase_PHASE_DELETING:
		word = strings.ToLower(enumText(v.GetPhase(), "PHASE_"))
		if v.GetProgress() != "" {
			word += ": " + v.GetProgress()
		}
		return word
	case v.GetStall() != nil:
		word = "stalled (" + v.GetStall().GetCause() + ")"
	case v.GetDamage() != nil:
		word = "damaged"
	case v.GetInSync() == 0:
		word = "down"
	case v.GetUnprotected():
		word = "unprotected"
	case v.GetInSync() < v.GetReplicasWanted():
		word = "degraded"
	}
	return word + " - " + attachedText(v)
}

func attachedText(v *pb.Volume) string {
	at := v.GetAttachment()
	switch {
	case at == nil:
		return "detached"
	case v.GetPhase() == pb.Phase_PHASE_RECOVERING:
		return "recovering on " + at.GetNode()
	case remote(v):
		return "attached on " + at.GetNode() + ", remote"
	default:
		return "attached on " + at.GetNode()
	}
}

// remote reports whether the node where v is attached has no replica of it in sync: what is read comes from another node.
func remote(v *pb.Volume) bool {
	return v.GetAttachment() != nil && v.GetInSync() > 0 && !slices.ContainsFunc(v.GetReplicas(), func(r *pb.Replica) bool {
		return r.GetNode() == v.GetAttachment().GetNode() && r.GetState() == pb.ReplicaState_REPLICA_STATE_IN_SYNC
	})
}

func (a *app) volumeInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect VOLUME",
		Short: "Show one volume with its replicas",
		Args:  oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := a.inspect(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { inspectTable(w, resp.GetVolume(), resp.GetExposure()) })
		},
	}
}

func (a *app) inspect(ctx context.Context, name string) (*pb.InspectVolumeResponse, error) {
	client, err := a.volumes()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.withTimeout(ctx)
	defer cancel()
	return client.InspectVolume(ctx, &pb.InspectVolumeRequest{Volume: name})
}

func inspectTable(w io.Writer, v *pb.Volume, x *pb.Exposure) {
	pairs := []string{
		"Volume", v.GetId(),
		"Name", v.GetName(),
		"Size", fmt.Sprintf("%s (%d bytes)", bytesText(v.GetSizeBytes()), v.GetSizeBytes()),
		"Replicas", fmt.Sprintf("%d, %d in sync", v.GetReplicasWanted(), v.GetInSync()),
		"Protection", policyText(v),
		"Failover", failoverText(v),
		"Limits", limitsText(v.GetLimits()),
		"Resync priority", priorityText(v.GetResyncPriority()),
		"Space", spaceText(v),
		"Labels", labelsText(v.GetLabels()),
		"Created", timeText(v.GetCreatedUnixMs()),
		"Status", volumeStatus(v),
		"Phase", enumText(v.GetPhase(), "PHASE_"),
		"Epoch, term", fmt.Sprintf("%d, %d", v.GetEpoch(), v.GetTerm()),
	}
	if p := placingText(v.GetPlacing()); p != "" {
		pairs = append(pairs, "Placed", p)
	}
	if at := v.GetAttachment(); at != nil {
		pairs = append(pairs,
			"Attached", fmt.Sprintf("on %s (domain %s) by %s", at.GetNode(), at.GetDomain(), at.GetFrontend()),
			"Device path", at.GetPath())
		if remote(v) {
			pairs = append(pairs, "Remote", "yes: no replica is in sync on this node, every read goes over the network")
		}
	}
	if v.GetPhase() != pb.Phase_PHASE_CREATING && v.GetPhase() != pb.Phase_PHASE_DELETING && v.GetProgress() != "" {
		pairs = append(pairs, "In progress", v.GetProgress())
	}
	if x != nil {
		pairs = append(pairs, "Exposed", exposureText(x))
	}
	if n := v.GetUnreconciledBytes(); n > 0 {
		pairs = append(pairs, "Comparing", bytesText(n)+" in which the replicas may differ, as after a takeover; a read there waits for it")
	}
	if st := v.GetStall(); st != nil {
		pairs = append(pairs, "Stalled", fmt.Sprintf("%s since %s", st.GetCause(), timeText(st.GetSinceUnixMs())),
			"What to do", st.GetText())
	}
	if y := v.GetVerify(); y.GetRunning() || y.GetLastUnixMs() != 0 {
		pairs = append(pairs, "Verify", verifyText(y)+"; last complete: "+verifyTime(y.GetLastUnixMs(), "none"))
	}
	if g := v.GetGroup(); g != "" {
		pairs = append(pairs, "Group", g)
	}
	fields(w, append(pairs, damagePairs(v.GetDamage())...)...)
	fmt.Fprintln(w, "\nReplicas:")
	rows := [][]string{{"NODE", "DOMAIN", "POOL", "STATE", "NODE ONLINE", "MISSING", "PROGRESS"}}
	for _, r := range v.GetReplicas() {
		missing, progress := "-", "-"
		if !r.GetInSync() {
			progress, _ = resyncText(r)
			if r.GetDirtyBytes() > 0 {
				missing = bytesText(r.GetDirtyBytes())
			}
		}
		if n := r.GetHealedBlocks(); n > 0 {
			progress = strings.TrimPrefix(progress+fmt.Sprintf("; %d blocks healed", n), "-; ")
		}
		if r.GetSuspect() {
			progress += ", DISK SUSPECT"
		}
		rows = append(rows, []string{r.GetNode(), r.GetDomain(), r.GetPool(), enumText(r.GetState(), "REPLICA_STATE_"),
			yesNo(r.GetNodeOnline()), missing, progress})
	}
	table(w, rows...)
}

func (a *app) volumeDeleteCommand() *cobra.Command {
	var yes, wait bool
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "delete VOLUME",
		Short: "Delete a volume and its data",
		Long: `Delete a volume and its data on every node, after asking. An attached volume is refused. A volume that does not exist
counts as deleted. Replicas on nodes that are away are removed when these return.`,
		Args: oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := a.confirm(fmt.Sprintf("All data of volume %s will be lost for good. Delete it?", args[0])); err != nil {
					return err
				}
			}
			client, err := a.volumes()
			if err != nil {
				return err
			}
			bound := a.withTimeout
			if wait {
				bound = a.forWaiting
			}
			ctx, cancel := bound(cmd.Context())
			defer cancel()
			resp, err := client.DeleteVolume(ctx, &pb.DeleteVolumeRequest{
				Volume: args[0], Wait: wait, Reason: order.reason, Actor: a.actor(), ExpectedEpoch: order.expected(cmd),
			})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				switch v := resp.GetVolume(); {
				case v == nil:
					fmt.Fprintf(w, "Volume %s is deleted\n", args[0])
				default:
					fmt.Fprintf(w, "Volume %s is being deleted\n", args[0])
				}
			})
		},
	}
	order.add(cmd)
	order.addEpoch(cmd, "volume", "inspect")
	addYes(cmd, &yes)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until every replica is removed")
	return cmd
}

// confirm asks a person; without one it refuses.
func (a *app) confirm(question string) error {
	if !a.stdinTTY {
		return usageError("nobody can be asked here: give --yes to go on without a question")
	}
	fmt.Fprintf(a.stderr, "%s (y/N): ", question)
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return fmt.Errorf("tandemctl: cannot read the answer: %w", err)
	}
	if err != nil {
		fmt.Fprintln(a.stderr) // the input ended without a line: end ours
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return &cliError{exit: rpcstatus.ExitError, msg: "not confirmed: nothing was changed"}
}

package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

func (a *app) replicaReplaceCommand() *cobra.Command {
	var node, pool string
	var yes, wait bool
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "replace VOLUME REPLICA",
		Short: "Put a new replica in the place of one that failed",
		Long: `Put a new, empty replica in the place of one whose disk failed or whose node is lost. REPLICA is its id or the name of
its node, see "tandemctl volume inspect". A replica that is in sync is refused, so that the last one never goes.

The new one goes to the same domain, to a node that has no other replica of the volume, and into another pool than the
old one if there is a choice; a repaired pool can be named. The old one is never asked for anything again, whatever is
found on its disk later; what is left of it is removed when its node is there. The new one is filled from the
others in full while the volume is attached, and is in sync then.

While the volume is attached the replacement is only noted and made ready: the two are exchanged when the volume is
detached. Asking again changes nothing; naming another place takes the first one back.`,
		Example: `  tandemctl volume replica replace data b1
  tandemctl volume replica replace data b1 --to-node b2 --wait`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) < 2 || args[0] == "" || args[1] == "":
				return usageError("VOLUME and REPLICA are needed")
			case len(args) > 2:
				return usageError("one replica at a time: %q is too much", args[2])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := a.confirm(fmt.Sprintf("What replica %s of volume %s holds will be removed for good. Replace it?", args[1], args[0])); err != nil {
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
			resp, err := client.ReplaceReplica(ctx, &pb.ReplaceReplicaRequest{
				Volume: args[0], Replica: args[1], Node: node, Pool: pool, Wait: wait, Reason: order.reason, Actor: a.actor(), ExpectedEpoch: order.expected(cmd),
			})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { replaceText(w, args, resp.GetVolume()) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&node, "to-node", "", "`node` that takes the new replica")
	f.StringVar(&pool, "to-pool", "", "`UUID` of the pool that takes it, see \"tandemctl status\" of its node")
	order.add(cmd)
	order.addEpoch(cmd, "volume", "inspect")
	addYes(cmd, &yes)
	f.BoolVar(&wait, "wait", false, "wait until the new replica is in the place of the old one")
	return cmd
}

func replaceText(w io.Writer, args []string, v *pb.Volume) {
	switch {
	case v.GetProgress() != "":
		fmt.Fprintf(w, "Volume %s: %s\n", args[0], v.GetProgress())
	case v.GetAttachment() == nil:
		fmt.Fprintf(w, "Replica %s of volume %s is replaced: attach the volume to fill the new one\n", args[1], args[0])
	default:
		fmt.Fprintf(w, "Replica %s of volume %s is replaced: the new one is being filled\n", args[1], args[0])
	}
}

func (a *app) replicaForceCommand() *cobra.Command {
	var order orderFlags
	var yes bool
	cmd := &cobra.Command{
		Use:   "force VOLUME REPLICA",
		Short: "Go on with a replica that lacks writes, when all that have them are lost",
		Long: `Make a replica that is out of sync the only one in sync, when every replica that has all acknowledged writes is lost.
REPLICA is its id or the name of its node, see "tandemctl volume inspect". THE WRITES THAT IT LACKS ARE LOST: those that were
acknowledged after it left, which may have been long before the disaster. It is as consistent as after a power cut at that time.

It is the last resort. It is refused while a replica that is in sync is in a domain that is in service: take that domain out
of service first. It is refused for a replica that was being resynced, which is neither the old state nor the new one.

A volume of a group goes back in time alone unless the others are forced too: see "tandemctl group inspect" first.

The volume is detached after that: attach it. The others are compared in full with this one when they return; what only
they had is overwritten then, so copy it from their disks before, if it may be worth something. It cannot be undone.`,
		Example: `  tandemctl cluster domains deactivate --name primary --peer-lost --accept-data-loss=ledger
  tandemctl volume replica force ledger d1 --reason "primary burnt down, ticket 4711"`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) < 2 || args[0] == "" || args[1] == "":
				return usageError("VOLUME and REPLICA are needed")
			case len(args) > 2:
				return usageError("one replica at a time: %q is too much", args[2])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := a.confirmForce(cmd.Context(), args[0], args[1]); err != nil {
					return err
				}
			}
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.ForceReplica(ctx, &pb.ForceReplicaRequest{
				Volume: args[0], Replica: args[1], Reason: order.reason, Actor: a.actor(), ExpectedEpoch: order.expected(cmd),
			})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				fmt.Fprintf(w, "Replica %s is the only one in sync of volume %s, at epoch %d. It has what was written up to epoch %d;\n",
					args[1], args[0], resp.GetVolume().GetEpoch(), resp.GetDataEpoch())
				fmt.Fprintf(w, "what was acknowledged later, on %s, is lost. Attach the volume to go on\n", strings.Join(resp.GetLostNodes(), ", "))
				if g := resp.GetVolume().GetGroup(); g != "" {
					fmt.Fprintf(w, "It is in group %s, of which the other volumes are where they were. Before any of them is attached force those\ntoo that lack writes there: see tandemctl group inspect %s\n", g, g)
				}
			})
		},
	}
	order.add(cmd)
	order.addEpoch(cmd, "volume", "inspect")
	addYes(cmd, &yes)
	return cmd
}

// confirmForce asks whether a replica is to be forced, and says before what that means for the volume's group.
func (a *app) confirmForce(ctx context.Context, volume, replica string) error {
	if a.stdinTTY {
		resp, err := a.inspect(ctx, volume)
		if err != nil {
			return err
		}
		if g := resp.GetVolume().GetGroup(); g != "" {
			fmt.Fprintf(a.stderr, `Volume %s is in group %s. Forced alone it goes back in time alone, and what the others have that depends on the writes it loses
stays. Together they are of one moment only if the group is consistent in the replica's domain (tandemctl group inspect %s), and all
volumes that are not in sync there are forced there before any is attached.
`, volume, g, g)
		}
	}
	return a.confirm(fmt.Sprintf("Every write of volume %s that replica %s lacks will be lost for good. Go on with it?", volume, replica))
}

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// protections are the values of --protection.
var protections = map[string]pb.Protection{
	"max-availability": pb.Protection_PROTECTION_MAX_AVAILABILITY,
	"max-protection":   pb.Protection_PROTECTION_MAX_PROTECTION,
}

func protectionText(p pb.Protection) string {
	for name, v := range protections {
		if v == p {
			return name
		}
	}
	return "unknown"
}

// protectionFlags are the flags that say how a volume is protected.
type protectionFlags struct {
	mode, domains string
	inSync        uint32
	stall         time.Duration
}

func (p *protectionFlags) register(f *pflag.FlagSet) {
	f.StringVar(&p.mode, "protection", "max-availability",
		"`what` writes do while a replica is out of reach: max-availability goes on without it, max-protection stalls until it is back in sync")
	f.Uint32Var(&p.inSync, "min-in-sync", 0, "writes wait while fewer `replicas` are in sync; 0: they do not")
	f.StringVar(&p.domains, "require-domains", "", "writes wait while one of these `domains`, with commas, has no replica in sync")
	f.DurationVar(&p.stall, "stall-for", 0, "writes wait for so long for what the protection asks for, then go on without it and raise an alarm; 0: for as long as it takes")
}

// given reports whether any flag was.
func (p *protectionFlags) given(f *pflag.FlagSet) bool {
	return f.Changed("protection") || f.Changed("min-in-sync") || f.Changed("require-domains") || f.Changed("stall-for")
}

// apply changes what the flags that were given say.
func (p *protectionFlags) apply(f *pflag.FlagSet, mode *pb.Protection, needs *pb.Needs) error {
	if f.Changed("protection") || *mode == pb.Protection_PROTECTION_UNSPECIFIED {
		m, ok := protections[p.mode]
		if !ok {
			return usageError("--protection %q: use max-availability or max-protection", p.mode)
		}
		*mode = m
	}
	if f.Changed("min-in-sync") {
		needs.InSync = p.inSync
	}
	if f.Changed("require-domains") {
		needs.Domains = splitList(p.domains)
	}
	if f.Changed("stall-for") {
		if p.stall < 0 || p.stall%time.Millisecond != 0 {
			return usageError("--stall-for %v: write whole milliseconds, 0 or more", p.stall)
		}
		needs.StallMs = p.stall.Milliseconds()
	}
	return nil
}

// needsOrNil leaves out what asks for nothing.
func needsOrNil(n *pb.Needs) *pb.Needs {
	if n.GetInSync() == 0 && len(n.GetDomains()) == 0 && n.GetStallMs() == 0 {
		return nil
	}
	return n
}

// policyText is all of a volume's protection.
func policyText(v *pb.Volume) string {
	parts := []string{protectionText(v.GetProtection())}
	n := v.GetNeeds()
	if n.GetInSync() > 0 {
		parts = append(parts, fmt.Sprintf("at least %d in sync", n.GetInSync()))
	}
	if len(n.GetDomains()) > 0 {
		parts = append(parts, "one in sync in "+strings.Join(n.GetDomains(), ", "))
	}
	if n.GetStallMs() > 0 {
		parts = append(parts, fmt.Sprintf("writes wait for %v, then go on without", time.Duration(n.GetStallMs())*time.Millisecond))
	}
	if v.GetUnprotected() {
		parts = append(parts, "UNPROTECTED NOW")
	}
	return strings.Join(parts, "; ")
}

func (a *app) volumeUpdateCommand() *cobra.Command {
	var p protectionFlags
	var l limitFlags
	var priority priorityFlag
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "update VOLUME",
		Short: "Change the protection, the limits or the resync priority of a volume",
		Long: `Change what has to be in sync for a write of the volume to be acknowledged, while it is in use, on any node: it asks the one where the
volume is attached. What is not given stays as it is. When the command returns without an error the new protection is in force, and no write is acknowledged against it
from then on. Asking for less lets writes go on that wait.

The change is made of the configuration that the command has read, or that --expect-epoch names: if that was changed
meanwhile, nothing is done.

With --iops and --bandwidth change what consumers get of the volume in a second, on any node; the node where it is attached
follows within moments. So do all nodes with --resync-priority: where more is to be resynced than at once, or shares a rate, a higher priority begins before what
came up to ten minutes earlier, and has four times as much of what is left above replication.resyncFloor for each.`,
		Example: `  tandemctl volume update ledger --protection max-protection --stall-for 30s
  tandemctl volume update ledger --protection max-availability --reason "site B is down until Monday"
  tandemctl volume update batch --iops 500 --bandwidth 50MiB
  tandemctl volume update ledger --resync-priority high
  tandemctl volume update data --min-in-sync 2 --require-domains dr-site --expect-epoch 17`,
		Args: oneName("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f := cmd.Flags()
			if !p.given(f) && !l.given(f) && !priority.given(f) {
				return usageError("nothing to change: give --protection, --min-in-sync, --require-domains, --stall-for, --iops, --bandwidth or --resync-priority")
			}
			resyncs, err := priority.value(f)
			if err != nil {
				return err
			}
			now, err := a.inspect(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			v := now.GetVolume()
			limits := &pb.Limits{Iops: v.GetLimits().GetIops(), BandwidthBytesPerSecond: v.GetLimits().GetBandwidthBytesPerSecond()}
			if err := l.apply(f, limits); err != nil {
				return err
			}
			req := &pb.UpdateVolumeRequest{Volume: v.GetId(), Protection: v.GetProtection(), ExpectedEpoch: &v.Epoch, Reason: order.reason, Actor: a.actor()}
			needs := &pb.Needs{InSync: v.GetNeeds().GetInSync(), Domains: slices.Clone(v.GetNeeds().GetDomains()), StallMs: v.GetNeeds().GetStallMs()}
			if err := p.apply(f, &req.Protection, needs); err != nil {
				return err
			}
			req.Needs = needsOrNil(needs)
			if e := order.expected(cmd); e != nil {
				req.ExpectedEpoch = e
			}
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			if p.given(f) {
				resp, err := client.UpdateVolume(ctx, req)
				if err != nil {
					return err
				}
				v = resp.GetVolume()
			}
			if l.given(f) {
				resp, err := client.LimitVolume(ctx, &pb.LimitVolumeRequest{Volume: v.GetId(), Limits: limitsOrNil(limits), Reason: order.reason, Actor: a.actor()})
				if err != nil {
					return err
				}
				v = resp.GetVolume()
			}
			if priority.given(f) {
				resp, err := client.PrioritiseVolume(ctx, &pb.PrioritiseVolumeRequest{Volume: v.GetId(), ResyncPriority: resyncs, Reason: order.reason, Actor: a.actor()})
				if err != nil {
					return err
				}
				v = resp.GetVolume()
			}
			return a.print(&pb.UpdateVolumeResponse{Volume: v}, func(w io.Writer) {
				if p.given(f) {
					fmt.Fprintf(w, "Protection of volume %s in force: %s (epoch %d)\n", v.GetName(), policyText(v), v.GetEpoch())
				}
				if l.given(f) {
					fmt.Fprintf(w, "Limits of volume %s: %s\n", v.GetName(), limitsText(v.GetLimits()))
				}
				if priority.given(f) {
					fmt.Fprintf(w, "Resync priority of volume %s: %s\n", v.GetName(), priorityText(v.GetResyncPriority()))
				}
			})
		},
	}
	p.register(cmd.Flags())
	l.register(cmd.Flags())
	priority.register(cmd.Flags())
	order.add(cmd)
	order.addEpoch(cmd, "volume", "inspect")
	return cmd
}

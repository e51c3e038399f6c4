package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// changeFlags are those of activate and deactivate.
type changeFlags struct {
	orderFlags
	name string
	wait bool
}

func (f *changeFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.name, "name", "n", "", "the `domain`")
	f.orderFlags.add(cmd)
	f.addEpoch(cmd, "domain", "show")
	_ = cmd.MarkFlagRequired("name") // the flag is there: see above
}

func (a *app) domainsActivateCommand() *cobra.Command {
	var f changeFlags
	cmd := &cobra.Command{
		Use:   "activate --name DOMAIN",
		Short: "Let a domain return to service",
		Long: `Let a domain return to service. A domain that was out of service becomes REJOINING, and ACTIVE by itself when its
replicas are in sync again. Activating an ACTIVE domain changes nothing.

With --wait the resync of each volume is shown until the domain is ACTIVE and in sync.`,
		Example: `  tandemctl cluster domains activate --name primary --reason "power is back" --wait`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.domains()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.ActivateDomain(ctx, &pb.ActivateDomainRequest{
				Domain: f.name, ExpectedEpoch: f.expected(cmd), Reason: f.reason, Actor: a.actor(),
			})
			if err != nil {
				return err
			}
			if !f.wait {
				return a.print(resp, func(w io.Writer) { domainChanged(w, resp.GetDomain()) })
			}
			d, err := a.waitForDomain(cmd.Context(), resp.GetDomain(), activated)
			if err != nil {
				return err
			}
			return a.print(&pb.ActivateDomainResponse{Domain: d}, func(w io.Writer) { domainChanged(w, d) })
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait until the domain is ACTIVE and in sync, showing the resync")
	return cmd
}

func (a *app) domainsDeactivateCommand() *cobra.Command {
	var f changeFlags
	var peerLost, yes bool
	var accept string
	cmd := &cobra.Command{
		Use:   "deactivate --name DOMAIN",
		Short: "Take a domain out of service",
		Long: `Take a domain out of service: by plan (DRAINING, then INACTIVE when nothing runs there any more), or with
--peer-lost at once (FENCED): from then on the other domains refuse its nodes, whatever those believe.

It is refused while the last in-sync replica of a volume is in the domain; the error names the volumes.
--accept-data-loss gives up the writes that only those replicas have, after asking. It cannot be undone.`,
		Example: `  tandemctl cluster domains deactivate --name primary --reason "moving racks" --wait
  tandemctl cluster domains deactivate --name primary --peer-lost --reason "site is dark"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			volumes := splitList(accept)
			if cmd.Flags().Changed("accept-data-loss") && len(volumes) == 0 {
				return usageError("--accept-data-loss names no volume")
			}
			if len(volumes) > 0 && !yes {
				if err := a.confirm(fmt.Sprintf("Writes that only replicas in domain %s have will be lost for good, of: %s. Deactivate it?", f.name, strings.Join(volumes, ", "))); err != nil {
					return err
				}
			}
			client, err := a.domains()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.DeactivateDomain(ctx, &pb.DeactivateDomainRequest{
				Domain: f.name, ExpectedEpoch: f.expected(cmd), Reason: f.reason, Actor: a.actor(),
				PeerLost: peerLost, AcceptDataLossVolumes: volumes,
			})
			if err != nil {
				return err
			}
			if !f.wait {
				return a.print(resp, func(w io.Writer) { domainChanged(w, resp.GetDomain()) })
			}
			d, err := a.waitForDomain(cmd.Context(), resp.GetDomain(), deactivated)
			if err != nil {
				return err
			}
			return a.print(&pb.DeactivateDomainResponse{Domain: d}, func(w io.Writer) { domainChanged(w, d) })
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&peerLost, "peer-lost", false, "the domain is gone: fence it at once, wait for nothing")
	cmd.Flags().StringVar(&accept, "accept-data-loss", "", "give up the last copy of these `volumes` (ids or names, with commas)")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait until nothing runs in the domain any more")
	return cmd
}

func domainChanged(w io.Writer, d *pb.Domain) {
	fmt.Fprintf(w, "Domain %s is %s, %s (epoch %d)\n", d.GetName(), enumText(d.GetState(), "DOMAIN_STATE_"), syncText(d.GetSync()), d.GetEpoch())
	for _, b := range d.GetBlocked() {
		fmt.Fprintln(w, blockedText(d.GetName(), b))
	}
}

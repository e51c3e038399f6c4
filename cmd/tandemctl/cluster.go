package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

func (a *app) clusterListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the nodes of the cluster",
		Long:  `List the nodes of the cluster. The JSON is that of "tandemctl status".`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.getStatus(cmd)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) {
				fmt.Fprintf(w, "Cluster: %s (id %s)\n", s.GetClusterName(), s.GetClusterId())
				fmt.Fprintf(w, "Status: %s\n\nNodes in the cluster:\n", health(s))
				nodesTable(w, s.GetNodes())
			})
		},
	}
}

func (a *app) domainsShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the cluster domains and how far they are in sync",
		Long: `Show the cluster domains and how far they are in sync. States:

  ACTIVE     volumes are attached here, replicas are in sync here
  STANDBY    replicas only
  DRAINING   nothing new is attached; what runs ends by plan
  INACTIVE   out of service by plan
  FENCED     out of service at once: the other domains refuse its nodes
  REJOINING  replicas are being resynced, nothing is attached yet`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.domains()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			l, err := client.ListDomains(ctx, &pb.ListDomainsRequest{})
			if err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) {
				domainsTable(w, l.GetDomains(), l.GetLocalDomain())
				changesTable(w, l.GetDomains())
			})
		},
	}
}

func domainsTable(w io.Writer, domains []*pb.Domain, local string) {
	rows := [][]string{{"DOMAIN", "STATE", "SYNC", "NODES ONLINE", "REPLICAS IN SYNC", "EPOCH"}}
	for _, d := range domains {
		name := d.GetName()
		if name == local {
			name += " (this domain)"
		}
		rows = append(rows, []string{name, enumText(d.GetState(), "DOMAIN_STATE_"), syncText(d.GetSync()),
			fmt.Sprintf("%d of %d", d.GetNodesOnline(), d.GetNodesTotal()),
			fmt.Sprintf("%d of %d", d.GetReplicasInSync(), d.GetReplicasTotal()),
			fmt.Sprint(d.GetEpoch())})
	}
	table(w, rows...)
	for _, d := range domains {
		if o := d.GetFailover(); o != nil {
			fmt.Fprintf(w, "%s may be lost: %s (%s)\n", d.GetName(), o.GetText(), o.GetIdle())
		}
		if id := d.GetFailoverId(); id != 0 {
			fmt.Fprintf(w, "%s was fenced by automatic failover %d: see tandemctl failover report %d\n", d.GetName(), id, id)
		}
		for _, b := range d.GetBlocked() {
			fmt.Fprintln(w, blockedText(d.GetName(), b))
		}
	}
}

// changesTable tells who changed each domain last, and why.
func changesTable(w io.Writer, domains []*pb.Domain) {
	fmt.Fprintln(w, "\nLast changes:")
	rows := [][]string{{"DOMAIN", "FROM", "TO", "WHEN", "BY", "REASON"}}
	for _, d := range domains {
		from := "-"
		if d.GetPrevState() != pb.DomainState_DOMAIN_STATE_UNSPECIFIED {
			from = enumText(d.GetPrevState(), "DOMAIN_STATE_")
		}
		rows = append(rows, []string{d.GetName(), from, enumText(d.GetState(), "DOMAIN_STATE_"), timeText(d.GetChangedUnixMs()), d.GetActor(), d.GetReason()})
	}
	table(w, rows...)
}

func blockedText(domain string, b *pb.BlockedVolume) string {
	return fmt.Sprintf("%s waits for volume %s: %s (%s)", domain, b.GetVolumeId(), b.GetText(), b.GetCause())
}

// syncText is the word of the field for a SyncStatus.
func syncText(s pb.SyncStatus) string {
	switch s {
	case pb.SyncStatus_SYNC_STATUS_IN_SYNC:
		return "InSync"
	case pb.SyncStatus_SYNC_STATUS_SYNC_IN_PROGRESS:
		return "SyncInProgress"
	case pb.SyncStatus_SYNC_STATUS_NOT_IN_SYNC:
		return "NotInSync"
	default:
		return "Unknown"
	}
}

// splitList reads "a,b" as the elements it has, without empty ones.
func splitList(s string) []string {
	var out []string
	for e := range strings.SplitSeq(s, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out
}

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the health of the cluster as one node sees it",
		Long: `Show the health of the cluster as one node sees it: domains, nodes with their pools, the key-value store,
round-trip times, alerts. The exit code is 0 whenever the node answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.getStatus(cmd)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) {
				a.statusTable(w, s)
				a.redundancy(cmd, w)
			})
		},
	}
}

func (a *app) getStatus(cmd *cobra.Command) (*pb.GetStatusResponse, error) {
	client, err := a.cluster()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.withTimeout(cmd.Context())
	defer cancel()
	return client.GetStatus(ctx, &pb.GetStatusRequest{})
}

func (a *app) statusTable(w io.Writer, s *pb.GetStatusResponse) {
	fmt.Fprintf(w, "Status: %s\n", health(s))
	fmt.Fprintf(w, "Cluster: %s (id %s)\n", s.GetClusterName(), s.GetClusterId())
	this := thisNode(s)
	fmt.Fprintf(w, "Node: %s in domain %s, version %s\n", s.GetThisNode(), this.GetDomain(), s.GetVersion())
	if pools := this.GetPools(); len(pools) > 0 {
		rows := [][]string{{"    POOL", "FS", "CAPACITY", "USED", "PROVISIONED", "UUID"}}
		for _, p := range pools {
			rows = append(rows, []string{"    " + p.GetPath(), p.GetFs(), bytesText(p.GetTotalBytes()), bytesText(p.GetUsedBytes()),
				bytesText(p.GetProvisionedBytes()), p.GetUuid()})
		}
		table(w, rows...)
	}

	fmt.Fprintln(w, "\nKey-value store: "+kvdbLine(s.GetKvdb()))
	if ms := s.GetKvdb().GetMembers(); len(ms) > 0 {
		rows := [][]string{{"    MEMBER", "ADDRESS", "ROLE", "HEALTHY"}}
		for _, m := range ms {
			rows = append(rows, []string{"    " + m.GetName(), m.GetAddress(), m.GetRole(), yesNo(m.GetHealthy())})
		}
		table(w, rows...)
	}

	fmt.Fprintln(w, "\nCluster domains:")
	domainsTable(w, s.GetDomains(), this.GetDomain())
	fmt.Fprintln(w, "\nNodes:")
	nodesTable(w, s.GetNodes())

	if len(s.GetRtts()) > 0 {
		fmt.Fprintln(w, "\nRound trips from this node (last minute):")
		rows := [][]string{{"NODE", "DOMAIN", "P50", "P99", "LAST ANSWER", "NOTE"}}
		for _, r := range s.GetRtts() {
			p50, p99, note := "", "", ""
			if r.GetSamples() > 0 {
				p50, p99 = rttText(r.GetP50Us()), rttText(r.GetP99Us())
			}
			if r.GetWarning() {
				note = "above 10 ms"
			}
			rows = append(rows, []string{r.GetNode(), r.GetDomain(), p50, p99, a.agoText(r.GetLastSeenUnixMs()), note})
		}
		table(w, rows...)
	}
	if len(s.GetAlerts()) > 0 {
		fmt.Fprintln(w, "\nAlerts:")
		rows := [][]string{{"SEVERITY", "CODE", "RESOURCE", "TEXT"}}
		for _, al := range s.GetAlerts() {
			rows = append(rows, []string{enumText(al.GetSeverity(), "SEVERITY_"), al.GetCode(), al.GetResource(), al.GetText()})
		}
		table(w, rows...)
	}
}

// health sums the alerts up in one line.
func health(s *pb.GetStatusResponse) string {
	var alarms, warnings int
	for _, al := range s.GetAlerts() {
		switch al.GetSeverity() {
		case pb.Severity_SEVERITY_ALARM:
			alarms++
		case pb.Severity_SEVERITY_WARN:
			warnings++
		case pb.Severity_SEVERITY_NOTIFY, pb.Severity_SEVERITY_UNSPECIFIED:
		}
	}
	switch {
	case alarms > 0:
		return fmt.Sprintf("Tandem needs attention: %s, %s", count(alarms, "alarm"), count(warnings, "warning"))
	case !s.GetKvdb().GetHealthy():
		return "Tandem needs attention: the key-value store does not answer"
	case warnings > 0:
		return "Tandem is operational, with " + count(warnings, "warning")
	default:
		return "Tandem is operational"
	}
}

func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

func thisNode(s *pb.GetStatusResponse) *pb.Node {
	for _, n := range s.GetNodes() {
		if n.GetName() == s.GetThisNode() {
			return n
		}
	}
	return nil
}

func kvdbLine(k *pb.Kvdb) string {
	parts := []string{k.GetKind()}
	if k.GetHealthy() {
		parts = append(parts, "healthy")
	} else {
		parts = append(parts, "NOT healthy: "+k.GetError())
	}
	if k.GetLeader() != "" {
		parts = append(parts, "leader "+k.GetLeader())
	}
	if len(k.GetEndpoints()) > 0 {
		parts = append(parts, "endpoints "+strings.Join(k.GetEndpoints(), " "))
	}
	return strings.Join(parts, ", ")
}

func nodesTable(w io.Writer, nodes []*pb.Node) {
	rows := [][]string{{"NODE", "DOMAIN", "ADDRESS", "STATE", "STORAGE", "USED", "CAPACITY", "VERSION"}}
	for _, n := range nodes {
		var used, total uint64
		for _, p := range n.GetPools() {
			used += p.GetUsedBytes()
			total += p.GetTotalBytes()
		}
		storage, usedText, totalText := "yes", bytesText(used), bytesText(total)
		switch {
		case n.GetWitness():
			storage, usedText, totalText = "witness", "", ""
		case len(n.GetPools()) == 0:
			storage, usedText, totalText = "no", "", ""
		}
		state := enumText(n.GetState(), "NODE_STATE_")
		if n.GetThisNode() {
			state += " (this node)"
		}
		rows = append(rows, []string{n.GetName(), n.GetDomain(), n.GetAddress(), state, storage, usedText, totalText, n.GetVersion()})
	}
	table(w, rows...)
}

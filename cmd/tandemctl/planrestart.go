package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

func (a *app) planRestartCommand() *cobra.Command {
	var cancel bool
	cmd := &cobra.Command{
		Use:   "plan-restart NODE",
		Short: "Ask for leave to restart the daemon of a node",
		Long: `Ask for leave to restart the daemon of a node, for an upgrade or after a change of its configuration. Whoever has it may end the
daemon and start it again: no volume that is attached loses its last in-sync copy by it, the kvdb keeps its majority, and
no device ends. Otherwise it says what has to be waited for, with exit code 4, and nothing is changed.

One node of the cluster has leave at a time. It has it until its daemon has registered anew, and counts as away until then; one that
is not to be restarted after all gives it back with --cancel. Volumes that are detached, or have one replica, keep no node.

In Kubernetes the chart's tandem-controller asks.`,
		Example: `  tandemctl cluster plan-restart n1 && ssh n1 systemctl restart tandemd`,
		Args:    oneName("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.cluster()
			if err != nil {
				return err
			}
			ctx, done := a.withTimeout(cmd.Context())
			defer done()
			resp, err := client.PlanRestart(ctx, &pb.PlanRestartRequest{Node: args[0], Cancel: cancel})
			if err != nil {
				return err
			}
			if !resp.GetGranted() && !cancel {
				return stateError("wait for it; \"tandemctl volume list\" shows what is in sync", "node %s has to wait: %s", args[0], strings.Join(resp.GetWaits(), "; "))
			}
			return a.print(resp, func(w io.Writer) {
				if cancel {
					fmt.Fprintf(w, "Node %s has no leave to restart\n", args[0])
					return
				}
				fmt.Fprintf(w, "Node %s has leave to restart\n", args[0])
			})
		},
	}
	cmd.Flags().BoolVar(&cancel, "cancel", false, "the node is not restarted: take its leave back")
	return cmd
}

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
)

const rootLong = `tandemctl looks at and changes a Tandem cluster through the tandemd of any of its nodes.

Exit codes:
    0  done
    1  any other error
    2  wrong flags or arguments
    3  no such volume, domain or node
    4  the present state does not allow it, and will not change by itself
    5  the daemon or the key-value store does not answer
    6  exists already, and is different
    7  another change came first
    8  no space, or a limit is reached
    9  not done within --timeout; it may still be done
   10  data are damaged
   11  not authenticated, or not allowed
  130  interrupted

With -o json the answer is one JSON object on standard output, whose names do not change and end in
their unit (size_bytes, changed_unix_ms); 64-bit numbers are strings, as in every protobuf JSON. An error is one
JSON object on standard error. Progress goes to standard error.`

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "tandemctl",
		Short:         "Look at and change a Tandem cluster",
		Long:          rootLong,
		SilenceErrors: true, // run prints them
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs, // runGroup says which are unknown
		RunE:          runGroup,
	}
	root.SuggestionsMinimumDistance = 2
	f := root.PersistentFlags()
	f.StringVar(&a.flags.endpoint, "endpoint", "",
		fmt.Sprintf("unix socket or host:port of a tandemd (default %s, or $%s)", defaultEndpoint, envEndpoint))
	f.StringVar(&a.flags.tlsCA, "tls-ca", "", "`file` with the CA of the cluster, for host:port (or $"+envTLSCA+")")
	f.StringVar(&a.flags.tlsCert, "tls-cert", "", "`file` with a certificate of the cluster (or $"+envTLSCert+")")
	f.StringVar(&a.flags.tlsKey, "tls-key", "", "`file` with the key to --tls-cert (or $"+envTLSKey+")")
	f.StringVarP(&a.flags.output, "output", "o", outputTable, "`format` of the answer: table or json")
	f.DurationVar(&a.flags.timeout, "timeout", time.Minute,
		"longest wait for one answer, 0 for no end; with --wait it bounds the whole wait, which has no end otherwise")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if o := a.flags.output; o != outputTable && o != outputJSON {
			a.flags.output = outputTable
			return usageError("-o %q: use table or json", o)
		}
		if a.flags.timeout < 0 {
			return usageError("--timeout %v is negative", a.flags.timeout)
		}
		a.flags.timeoutSet = cmd.Flags().Changed("timeout")
		return nil
	}
	root.AddCommand(
		a.statusCommand(),
		a.doctorCommand(),
		group("cluster", "Nodes and cluster domains",
			a.clusterListCommand(), a.planRestartCommand(),
			a.domainsCommand("domains", "What each cluster domain (site) may do")),
		a.domainsCommand("domain", shortForDomains),
		group("failover", "What was moved when a domain was lost", a.failoverListCommand(), a.failoverReportCommand()),
		group("volume", "Create, look at and delete volumes",
			a.volumeCreateCommand(), a.volumeListCommand(), a.volumeInspectCommand(), a.volumeUpdateCommand(), a.volumeResizeCommand(), a.volumeExposureCommand(), a.volumeDeleteCommand(), a.volumeCloneCommand(),
			group("snapshot", "What volumes had at a moment",
				a.snapshotCreateCommand(), a.snapshotListCommand(), a.snapshotInspectCommand(), a.snapshotBlocksCommand(), a.snapshotDeleteCommand(), a.snapshotRestoreCommand(), a.snapshotRevertCommand(),
				a.groupSnapshotCreateCommand(), a.groupSnapshotListCommand(), a.groupSnapshotInspectCommand(), a.groupSnapshotDeleteCommand()),
			group("replica", "The replicas of a volume", a.replicaReplaceCommand(), a.replicaForceCommand()),
			group("verify", "Compare the replicas of a volume while it is in use", a.verifyStartCommand(), a.verifyStatusCommand(), a.verifyStopCommand())),
		group("group", "Volumes whose writes depend on each other",
			a.groupCreateCommand(), a.groupListCommand(), a.groupInspectCommand(), a.groupAddCommand(), a.groupRemoveCommand(),
			a.groupDeleteCommand(), a.groupCutCommand()),
		group("host", "Attach volumes to a node and mount them",
			a.hostAttachCommand(), a.hostDetachCommand(), a.hostUnpublishCommand(), a.hostMountCommand(), a.hostUnmountCommand(), a.hostReadyCommand()),
		group("kvdb", "The key-value store: its members, and what to do when it was lost", a.kvdbMembersCommand(), a.kvdbRemoveCommand(), a.kvdbImportCommand()),
		group("audit", "What operators and arbiters did", a.auditListCommand(), a.auditVerifyCommand()),
		group("pki", "Make certificates for those who have no authority", a.pkiCreateCACommand(), a.pkiIssueCommand()),
		a.versionCommand(),
	)
	a.markStart(root)
	return root
}

// shortForDomains is what the help says of the short form of "cluster domains", which the reference leaves out.
const shortForDomains = "Short for cluster domains"

func (a *app) domainsCommand(name, short string) *cobra.Command {
	return group(name, short, a.domainsShowCommand(), a.domainsActivateCommand(), a.domainsDeactivateCommand(), a.domainsSwitchoverCommand())
}

// markStart notes when a command begins to run: an error before is one of flags or arguments.
func (a *app) markStart(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return run(cmd, args)
		}
	}
	for _, sub := range c.Commands() {
		a.markStart(sub)
	}
}

// group is a command that only has commands below it.
func group(name, short string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short, RunE: runGroup}
	c.SuggestionsMinimumDistance = 2
	c.AddCommand(sub...)
	return c
}

// runGroup shows the help, or says that there is no such command.
func runGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	msg := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		msg += ": did you mean " + strings.Join(s, " or ") + "?"
	}
	return &cliError{exit: rpcstatus.ExitUsage, msg: msg, hint: "see " + cmd.CommandPath() + " --help"}
}

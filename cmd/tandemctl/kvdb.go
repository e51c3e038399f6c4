package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

func (a *app) kvdbMembersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "members",
		Short: "Show the members of the key-value store",
		Long:  `Show the members of the key-value store as the node that is asked knows them. The JSON is that of "tandemctl status".`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.getStatus(cmd)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { kvdbTable(w, s.GetKvdb()) })
		},
	}
}

func kvdbTable(w io.Writer, k *pb.Kvdb) {
	fmt.Fprintln(w, "Key-value store: "+kvdbLine(k))
	if len(k.GetMembers()) == 0 {
		return
	}
	rows := [][]string{{"NODE", "MEMBER ID", "ADDRESS", "ROLE", "WITNESS"}}
	for _, m := range k.GetMembers() {
		rows = append(rows, []string{m.GetName(), m.GetId(), m.GetAddress(), m.GetRole(), yesNo(m.GetWitness())})
	}
	table(w, rows...)
}

func (a *app) kvdbRemoveCommand() *cobra.Command {
	var yes bool
	var order orderFlags
	cmd := &cobra.Command{
		Use:   "remove MEMBER",
		Short: "Take a member out of the embedded key-value store",
		Long: `Take a member out of the embedded key-value store for good. MEMBER is its id or the name of its node. A node that is
a member has to be asked. Refused if of the members that remain no majority answers.

To replace a member that lost its disk: remove it here, then start tandemd on its node with an empty data directory.
The node joins anew by itself, as a member with another id. A node that is to be a member for the first time joins when it is named in
kvdb.raft.members of every member's configuration and started; nothing else adds one.`,
		Example: `  tandemctl kvdb members
  tandemctl kvdb remove w1`,
		Args: oneName("MEMBER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := a.confirm(fmt.Sprintf("The data of member %s will count no more. Remove it?", args[0])); err != nil {
					return err
				}
			}
			client, err := a.cluster()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.RemoveKvdbMember(ctx, &pb.RemoveKvdbMemberRequest{Member: args[0], Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				fmt.Fprintf(w, "Member %s is removed; its node joins anew when it is started with an empty data directory\n", args[0])
				kvdbTable(w, resp.GetKvdb())
			})
		},
	}
	order.add(cmd)
	addYes(cmd, &yes)
	return cmd
}

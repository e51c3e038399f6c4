package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

func (a *app) kvdbImportCommand() *cobra.Command {
	var volumes []string
	var all, dryRun, yes bool
	var order orderFlags
	var accept string
	cmd := &cobra.Command{
		Use:   "import (--all | --volume VOLUME)",
		Short: "Write volumes anew into a key-value store that was lost or restored from a backup",
		Long: `Write volumes anew into a key-value store that was lost or restored from a backup, from what the replicas know. Every
node is asked for its replicas; a volume that is attached goes on meanwhile and stays attached. --dry-run shows what would be
done. Nothing is written unless all that is asked for can be; asking again completes what was cut off, and changes nothing else.

A volume is refused when a replica does not answer that may know more than those that do: bring its node back.
--accept-data-loss gives up what it may know; it cannot be undone, and that replica has to be replaced when it returns.
A volume whose replicas contradict each other is refused in any case, with what was seen.`,
		Example: `  tandemctl kvdb import --all --dry-run
  tandemctl kvdb import --volume data --volume ledger
  tandemctl kvdb import --all --accept-data-loss=ledger`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := splitList(accept)
			switch {
			case all == (len(volumes) > 0):
				return usageError("give --all, or --volume for each volume")
			case cmd.Flags().Changed("accept-data-loss") && len(given) == 0:
				return usageError("--accept-data-loss names no volume")
			}
			if !yes && !dryRun {
				what := "The configurations of volumes will be written anew."
				if len(given) > 0 {
					what += " Writes that only replicas have that do not answer will be lost for good, of: " + strings.Join(given, ", ") + "."
				}
				if err := a.confirm(what + " Did you look at --dry-run, and go on?"); err != nil {
					return err
				}
			}
			client, err := a.volumes()
			if err != nil {
				return err
			}
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()
			resp, err := client.ImportKvdb(ctx, &pb.ImportKvdbRequest{Volumes: volumes, All: all, DryRun: dryRun, AcceptDataLossVolumes: given,
				Reason: order.reason, Actor: a.actor()})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { importTable(w, resp, dryRun) })
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&volumes, "volume", nil, "import this `volume` (id or name); may be given again")
	f.BoolVar(&all, "all", false, "import every volume that the key-value store or a replica knows")
	f.BoolVar(&dryRun, "dry-run", false, "show what would be done")
	f.StringVar(&accept, "accept-data-loss", "", "import these `volumes` (ids or names, with commas) though a replica that may know more does not answer")
	order.add(cmd)
	addYes(cmd, &yes)
	return cmd
}

// importWords say what is done about a volume.
var importWords = map[pb.ImportAction]string{
	pb.ImportAction_IMPORT_ACTION_NONE:    "nothing",
	pb.ImportAction_IMPORT_ACTION_IMPORT:  "import",
	pb.ImportAction_IMPORT_ACTION_REFUSED: "REFUSED",
}

func importTable(w io.Writer, r *pb.ImportKvdbResponse, dryRun bool) {
	rows := [][]string{{"VOLUME", "ID", "DO", "KVDB EPOCH", "KNOWN EPOCH", "NEW EPOCH", "IN SYNC ON", "WHY"}}
	for _, v := range r.GetVolumes() {
		do := importWords[v.GetAction()]
		if v.GetDataLoss() {
			do += " WITH LOSS"
		}
		rows = append(rows, []string{v.GetName(), v.GetId(), do, epochText(v.GetKvdbEpoch()), epochText(v.GetReplicaEpoch()), epochText(v.GetNewEpoch()),
			strings.Join(v.GetInSyncNodes(), ","), v.GetText()})
	}
	table(w, rows...)
	for _, n := range r.GetSilentNodes() {
		fmt.Fprintf(w, "Node %s did not tell what it has: %s\n", n.GetNode(), n.GetError())
	}
	switch {
	case dryRun:
		fmt.Fprintln(w, "Nothing was written: this is a dry run")
	case r.GetWritten():
		fmt.Fprintln(w, "Imported: attach the volumes that are not; \"tandemctl cluster domains show\" tells which domains may")
	default:
		fmt.Fprintln(w, "There was nothing to import")
	}
}

// epochText shows an epoch, "" for none.
func epochText(e uint64) string {
	if e == 0 {
		return ""
	}
	return fmt.Sprint(e)
}

package main

import (
	"encoding/json"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version string

// buildVersion is the version that the build set, or else what the Go tool stamped into the program: a tag, or a
// pseudo-version of the commit.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func (a *app) versionCommand() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of tandemctl and of the tandemd that is asked",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Client string `json:"client"`
				Server string `json:"server"`
				Node   string `json:"node"`
			}{Client: buildVersion()}
			var asked error
			if !clientOnly {
				s, err := a.getStatus(cmd)
				asked = err
				v.Server, v.Node = s.GetVersion(), s.GetThisNode()
			}
			if a.flags.output == outputJSON {
				data, err := json.Marshal(v)
				if err != nil {
					return fmt.Errorf("tandemctl: cannot write the answer as JSON: %w", err)
				}
				if err := a.printJSON(data); err != nil {
					return err
				}
				return asked
			}
			fmt.Fprintf(a.stdout, "tandemctl: %s\n", v.Client)
			if !clientOnly && asked == nil {
				fmt.Fprintf(a.stdout, "tandemd:   %s (node %s)\n", v.Server, v.Node)
			}
			return asked
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "do not ask tandemd")
	return cmd
}

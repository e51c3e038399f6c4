package main

import (
	"os"
	"os/user"

	"github.com/spf13/cobra"
)

// orderFlags are those of every command that changes something.
type orderFlags struct {
	reason string
	epoch  uint64
}

func (f *orderFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.reason, "reason", "", "`why`, kept in the audit trail for others to read")
}

// addEpoch adds --expect-epoch, for what has an epoch; see says where it is shown.
func (f *orderFlags) addEpoch(cmd *cobra.Command, what, see string) {
	cmd.Flags().Uint64Var(&f.epoch, "expect-epoch", 0, "refuse if the "+what+" was changed since it had this `epoch` (see "+see+")")
}

func (f *orderFlags) expected(cmd *cobra.Command) *uint64 {
	if !cmd.Flags().Changed("expect-epoch") {
		return nil
	}
	return &f.epoch
}

// addYes adds --yes to a command that asks before it goes on.
func addYes(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(yes, "force", "f", false, "as --yes")
	_ = cmd.Flags().MarkHidden("force") // the flag is there: its name before
}

// actor says who asks. Over TLS the daemon takes the certificate's name; over the socket it only has our word.
func (a *app) actor() string {
	if _, ok := unixPath(a.endpoint()); !ok {
		return ""
	}
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

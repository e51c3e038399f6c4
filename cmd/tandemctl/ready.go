package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/datapath/frontend/device/devicepb"
)

const (
	readyDaemon  = "daemon"
	readyDevices = "devices"

	defaultDeviceSocket = "/run/tandem/device.sock"
)

func (a *app) hostReadyCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "ready [daemon] [devices]",
		Short: "Ask whether the processes of this node answer",
		Long: `Ask whether the processes of this node answer, for probes: the tandemd (daemon, also if nothing is named), and the process
that keeps its devices (devices, "tandemd device"). Without the latter nothing can be attached on a node whose front end is "device".`,
		Example: `  tandemctl --timeout 5s host ready daemon devices`,
		Args:    cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{readyDaemon}
			}
			if !filepath.IsAbs(socket) {
				return usageError("--device-socket %q: the path of a unix socket must be absolute, as in %s", socket, defaultDeviceSocket)
			}
			for _, what := range args {
				var err error
				switch what {
				case readyDaemon:
					err = a.daemonReady(cmd)
				case readyDevices:
					err = a.devicesReady(cmd, socket)
				default:
					err = usageError("%q: use %s or %s", what, readyDaemon, readyDevices)
				}
				if err != nil {
					return err
				}
			}
			if a.flags.output != outputJSON {
				fmt.Fprintf(a.stdout, "Ready: %s\n", strings.Join(args, ", "))
				return nil
			}
			data, err := json.Marshal(struct {
				Ready []string `json:"ready"`
			}{args})
			if err != nil {
				return fmt.Errorf("tandemctl: cannot write the answer as JSON: %w", err)
			}
			return a.printJSON(data)
		},
	}
	cmd.Flags().StringVar(&socket, "device-socket", defaultDeviceSocket, "`path` of the socket of \"tandemd device\" (frontends.device.socket)")
	return cmd
}

// daemonReady returns an error unless the tandemd answers.
func (a *app) daemonReady(cmd *cobra.Command) error {
	client, err := a.domains()
	if err != nil {
		return err
	}
	ctx, cancel := a.withTimeout(cmd.Context())
	defer cancel()
	_, err = client.ListDomains(ctx, &clusterdomainpb.ListDomainsRequest{})
	return err
}

// devicesReady returns an error unless the process that keeps the devices answers.
func (a *app) devicesReady(cmd *cobra.Command, socket string) error {
	conn, err := a.dial("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return usageError("--device-socket %s cannot be used: %v", socket, err)
	}
	defer conn.Close()
	ctx, cancel := a.withTimeout(cmd.Context())
	defer cancel()
	_, err = devicepb.NewDevicesClient(conn).ListDevices(ctx, &devicepb.ListDevicesRequest{})
	if c := status.Code(err); c == codes.Unavailable || c == codes.DeadlineExceeded {
		return &cliError{
			exit: rpcstatus.ExitUnavailable, msg: fmt.Sprintf("the device process at %s does not answer: %s", socket, status.Convert(err).Message()),
			hint: "start \"tandemd device\" on this node; nothing can be attached until it runs",
		}
	}
	return err
}

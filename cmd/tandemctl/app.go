package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/audit/auditpb"
	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// app is one run of the program: its flags, and the outside world as the tests replace it.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	stdinTTY       bool // a person can be asked
	stderrTTY      bool // progress may be drawn in place
	now            func() time.Time
	getenv         func(string) string
	dial           func(target string, opts ...grpc.DialOption) (*grpc.ClientConn, error)
	exec           func(ctx context.Context, name string, args ...string) (output string, err error)
	mounts         func() ([]mountEntry, error)
	isBlockDevice  func(path string) error
	pollInterval   time.Duration // while waiting

	conn    *grpc.ClientConn // made by the first call
	started bool             // flags and arguments were right
	flags   struct {
		endpoint               string
		tlsCA, tlsCert, tlsKey string
		output                 string
		timeout                time.Duration
		timeoutSet             bool
	}
}

func newApp() *app {
	return &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		stdinTTY: isTerminal(os.Stdin), stderrTTY: isTerminal(os.Stderr),
		now:           time.Now,
		getenv:        os.Getenv,
		dial:          grpc.NewClient,
		exec:          execCommand,
		mounts:        readMounts,
		isBlockDevice: isBlockDevice,
		pollInterval:  time.Second,
	}
}

// run executes one command line and returns the exit code. Errors go to stderr.
func (a *app) run(ctx context.Context, args []string) rpcstatus.Exit {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if a.conn != nil {
		_ = a.conn.Close() // nothing is left to send
	}
	if err == nil {
		return rpcstatus.ExitOK
	}
	f := a.failure(ctx, cmd.CommandPath(), err)
	a.printFailure(f)
	return f.Exit
}

// cliError is an error that arose here, not at the daemon.
type cliError struct {
	exit rpcstatus.Exit
	msg  string
	hint string
}

func (e *cliError) Error() string { return e.msg }

func usageError(format string, args ...any) error {
	return &cliError{exit: rpcstatus.ExitUsage, msg: fmt.Sprintf(format, args...)}
}

func stateError(hint, format string, args ...any) error {
	return &cliError{exit: rpcstatus.ExitPrecondition, msg: fmt.Sprintf(format, args...), hint: hint}
}

// failure explains err, whoever made it, while command ran.
func (a *app) failure(ctx context.Context, command string, err error) rpcstatus.Failure {
	var ce *cliError
	switch {
	case errors.As(err, &ce):
		return rpcstatus.Failure{Message: err.Error(), Hint: ce.hint, Exit: ce.exit}
	case !a.started:
		return rpcstatus.Failure{Message: err.Error(), Hint: "see " + command + " --help", Exit: rpcstatus.ExitUsage}
	case ctx.Err() != nil:
		return rpcstatus.Failure{Message: "interrupted", Hint: "the request may still take effect: look at the present state", Exit: rpcstatus.ExitInterrupted}
	}
	f := rpcstatus.FromStatus(err)
	if f.Exit == rpcstatus.ExitUnavailable && f.Reason == "" {
		f.Message = fmt.Sprintf("tandemd at %s does not answer: %s", a.endpoint(), f.Message)
	}
	return f
}

// printFailure writes what went wrong and what to do; with -o json as one object.
func (a *app) printFailure(f rpcstatus.Failure) {
	if a.flags.output == outputJSON {
		var b struct {
			Error struct {
				ExitCode int    `json:"exit_code"`
				Reason   string `json:"reason"`
				Message  string `json:"message"`
				Hint     string `json:"hint"`
			} `json:"error"`
		}
		b.Error.ExitCode, b.Error.Reason, b.Error.Message, b.Error.Hint = int(f.Exit), f.Reason, f.Message, f.Hint
		if data, err := json.MarshalIndent(b, "", "  "); err == nil {
			fmt.Fprintln(a.stderr, string(data))
			return
		}
	}
	fmt.Fprintf(a.stderr, "Error: %s\n", f.Message)
	if f.Hint != "" {
		fmt.Fprintf(a.stderr, "Hint:  %s\n", f.Hint)
	}
}

func (a *app) volumes() (volumepb.VolumesClient, error) {
	c, err := a.connect()
	return volumepb.NewVolumesClient(c), err
}

func (a *app) groups() (volumepb.GroupsClient, error) {
	c, err := a.connect()
	return volumepb.NewGroupsClient(c), err
}

func (a *app) domains() (clusterdomainpb.ClusterDomainsClient, error) {
	c, err := a.connect()
	return clusterdomainpb.NewClusterDomainsClient(c), err
}

func (a *app) cluster() (clusterdomainpb.ClusterClient, error) {
	c, err := a.connect()
	return clusterdomainpb.NewClusterClient(c), err
}

func (a *app) audit() (auditpb.AuditClient, error) {
	c, err := a.connect()
	return auditpb.NewAuditClient(c), err
}

// withTimeout bounds one request by --timeout.
func (a *app) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.flags.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, a.flags.timeout)
}

// forWaiting bounds a wait by --timeout only if it was given.
func (a *app) forWaiting(ctx context.Context) (context.Context, context.CancelFunc) {
	if !a.flags.timeoutSet {
		return context.WithCancel(ctx)
	}
	return a.withTimeout(ctx)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func execCommand(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

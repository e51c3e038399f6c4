// Command tandem-controller looks after the pods of nodes that die, in Kubernetes (docs/design/0033-node-loss.md), and carries updates of tandemd from
// node to node (docs/design/0034-rolling-update.md). It runs on nodes with a tandemd and asks that on its socket; of several one acts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/cmd/internal/logging"
	"github.com/tandem-storage/tandem/nodeloss"
	"github.com/tandem-storage/tandem/rollout"
)

// version is set by the build.
var version = "dev"

// lease is the name of the lease by which one leads.
const lease = "tandem-controller"

// A leader that died is replaced after leaseTime, beside the time in which its node is found lost.
const (
	leaseTime  = 8 * time.Second
	renewTime  = 5 * time.Second
	renewEvery = time.Second
)

func main() { os.Exit(run()) }

// run returns the exit code: 0 after an orderly end, 1 after a failure, 2 for flags that cannot be used.
func run() int {
	socket := flag.String("socket", "/run/tandem/tandemd.sock", "socket of the node's tandemd")
	kubeconfig := flag.String("kubeconfig", "", "how to reach Kubernetes; without it as a pod of it")
	namespace := flag.String("namespace", "", "namespace of the lease by which one of several leads (required)")
	identity := flag.String("identity", "", "name in that lease, unique; without it the host's")
	grace := flag.Duration("grace", nodeloss.DefaultGrace, "how long a kubelet has to be silent until its node can be lost; its tandemd has to be gone, too")
	outOfService := flag.Bool("out-of-service-taint", false, "put the taint node.kubernetes.io/out-of-service on lost nodes: moves pods and volumes that are not Tandem's, too")
	nodeLoss := flag.Bool("node-loss", true, "move the pods of lost nodes")
	updates := flag.Bool("rollout", false, "replace the pods of tandemd that are of an old revision, one after the other, when Tandem gives leave")
	level := flag.String("log-level", "info", "debug, info, warn or error")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *showVersion {
		fmt.Fprintln(os.Stdout, "tandem-controller", version)
		return 0
	}
	if err := usable(*namespace, *grace); err != nil {
		fmt.Fprintln(os.Stderr, "tandem-controller:", err)
		return 2
	}
	lg, _, err := logging.New(config.Log{Level: *level, Format: "json"}, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tandem-controller:", err)
		return 2
	}
	if *identity == "" {
		if *identity, err = os.Hostname(); err != nil {
			fmt.Fprintln(os.Stderr, "tandem-controller:", err)
			return 1
		}
	}
	client, err := connect(*kubeconfig)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tandem-controller: connect to Kubernetes:", err)
		return 2
	}
	cc, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Fprintf(os.Stderr, "tandem-controller: socket %s: %v\n", *socket, err)
		return 2
	}
	defer cc.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var all []leader
	if *nodeLoss {
		all = append(all, nodeloss.New(nodeloss.Options{
			Kubernetes: &nodeloss.Kubernetes{Client: client, OutOfService: *outOfService}, Tandem: nodeloss.NewTandem(cc), Grace: *grace, Logger: lg,
		}))
	}
	if *updates {
		all = append(all, rollout.New(rollout.Options{
			Kubernetes: &rollout.Kubernetes{Client: client, Namespace: *namespace}, Tandem: clusterdomainpb.NewClusterClient(cc), Logger: lg,
		}))
	}
	if err := serve(ctx, all, client, *namespace, *identity, lg); err != nil {
		fmt.Fprintln(os.Stderr, "tandem-controller:", err)
		return 1
	}
	return 0
}

func usable(namespace string, grace time.Duration) error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q; see --help", flag.Arg(0))
	case namespace == "":
		return errors.New("--namespace is missing")
	case grace < nodeloss.DefaultGrace:
		return fmt.Errorf("--grace %v is less than %v: a kubelet that is well renews its lease every 10 s", grace, nodeloss.DefaultGrace)
	}
	return nil
}

func connect(kubeconfig string) (*kubernetes.Clientset, error) {
	c, err := rest.InClusterConfig()
	if kubeconfig != "" {
		c, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, err
	}
	c.UserAgent = "tandem-controller/" + version
	return kubernetes.NewForConfig(c)
}

// leader is one that acts while it leads.
type leader interface {
	Lead(yes bool)
	Run(ctx context.Context)
}

// serve runs all until ctx ends, as the leader or not. Who has lost the lease applies for it again.
func serve(ctx context.Context, all []leader, client kubernetes.Interface, namespace, identity string, lg *zap.Logger) error {
	lead := func(yes bool) {
		for _, c := range all {
			c.Lead(yes)
		}
	}
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: lease}, Client: client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration: leaseTime, RenewDeadline: renewTime, RetryPeriod: renewEvery, ReleaseOnCancel: true, Name: lease,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { lead(true); lg.Info("this one leads") },
			OnStoppedLeading: func() { lead(false); lg.Info("this one does not lead any more") },
		},
	})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	for _, c := range all {
		running.Go(func() { c.Run(ctx) })
	}
	for ctx.Err() == nil {
		e.Run(ctx)
	}
	running.Wait()
	return nil
}

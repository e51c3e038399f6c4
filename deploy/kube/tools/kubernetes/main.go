// Command kubernetes is the programs of a Kubernetes node in one: it is the one whose name it was started by.
//
//	ln -s kubernetes kubelet; ./kubelet --help
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	var program *cobra.Command
	switch name := filepath.Base(os.Args[0]); name {
	case "kube-apiserver":
		program = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		program = controllers.NewControllerManagerCommand()
	case "kube-scheduler":
		program = scheduler.NewSchedulerCommand()
	case "kube-proxy":
		program = proxy.NewProxyCommand()
	case "kubelet":
		program = kubelet.NewKubeletCommand(context.Background())
	case "kubectl":
		program = cmd.NewDefaultKubectlCommand()
	default:
		fmt.Fprintf(os.Stderr, "%s is no program of Kubernetes: start this by a link with the name of one\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(program))
}

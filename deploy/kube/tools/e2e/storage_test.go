// Package e2e is the part of Kubernetes' own end-to-end tests that is for CSI drivers ("External Storage"), as a test program: package kube builds it and lets it
// loose on Tandem. It is a module of its own, because nothing else needs these packages, and a test, because they want to be run by one.
package e2e

import (
	"flag"
	"os"
	"testing"

	"k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/e2e/feature" // the names of features that labels are made of
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"   // what is told of a test that failed
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init" // what is measured
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"    // which nodes have to be ready
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	_ "k8s.io/kubernetes/test/e2e/storage/external" // the flag -storage.testdriver, and the specs
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
)

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	os.Exit(m.Run())
}

// TestStorage runs the specs that the flags of ginkgo choose.
func TestStorage(t *testing.T) { e2e.RunE2ETests(t) }

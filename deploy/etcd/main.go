// Command etcd is the etcd server, built from its public module, so that the
// tests and the demo run against a current, real etcd without a download:
//
//	go -C deploy/etcd build -o ../../bin/etcd .
//
// It is a module of its own to keep the server's dependencies out of the main one.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }

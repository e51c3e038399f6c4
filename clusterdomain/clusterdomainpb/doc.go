// Package clusterdomainpb is the service of cluster domains in protobuf, generated from the file beside it.
package clusterdomainpb

// Package replicationpb is the control exchange between nodes in protobuf, generated from the file beside it.
package replicationpb

// Package kvdbpb is the service of the embedded kvdb in protobuf, generated from the file beside it.
package kvdbpb

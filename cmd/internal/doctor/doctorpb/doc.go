// Package doctorpb is what nodes measure for "tandemctl doctor" in protobuf, generated from the file beside it.
package doctorpb

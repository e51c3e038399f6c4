// Package devicepb is the service of the process that shows volumes as devices in protobuf, generated from the file beside it.
package devicepb

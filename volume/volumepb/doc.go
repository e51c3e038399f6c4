// Package volumepb is the catalogue's service in protobuf, generated from the file beside it.
package volumepb

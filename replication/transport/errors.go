package transport

import "errors"

// What can go wrong between two nodes. Test with errors.Is.
var (
	// ErrDisconnected: the other node cannot be reached, or the connection broke.
	// Whether what was sent arrived is not known.
	ErrDisconnected = errors.New("transport: peer is not connected")
	// ErrUnknownPeer: no address of that node is known.
	ErrUnknownPeer = errors.New("transport: unknown node")
	// ErrIdentity: the other end did not prove to be the node, or of the cluster, that it has to be.
	ErrIdentity = errors.New("transport: peer identity refused")
	// ErrConfig: the certificate files or options of this node cannot be used.
	ErrConfig = errors.New("transport: bad configuration")
	// ErrNotLoopback: the insecure mode is for one node on its loopback interface.
	ErrNotLoopback = errors.New("transport: without certificates only loopback addresses are served; issue certificates with tandemctl pki")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("transport: closed")
	// ErrProtocol: the other end sent what this protocol does not have.
	ErrProtocol = errors.New("transport: protocol error")
)

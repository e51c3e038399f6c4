package volume

import (
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/wire"
)

// fillHello and the like put the bodies of the opening messages in and take them
// out. Every build speaks one version so far, so that nothing depends on what was
// agreed on.

func fillHello(m *replication.Message, h replication.Hello) { m.Data = wire.HelloBody(h, wire.Local) }

func helloOf(m *replication.Message) (replication.Hello, error) {
	h, p, err := wire.ParseHello(m.Data)
	if err != nil {
		return h, err
	}
	_, err = wire.Agree(wire.Local, p)
	return h, err
}

func fillHelloAck(m *replication.Message, a replication.HelloAck) {
	m.Data = wire.HelloAckBody(a, wire.Agreed{Version: wire.MaxVersion})
}

func helloAck(m *replication.Message) (replication.HelloAck, error) {
	a, _, err := wire.ParseHelloAck(m.Data, wire.Local)
	return a, err
}

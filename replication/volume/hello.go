package volume

import (
	"fmt"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/wire"
)

// fillHello and the like put the bodies of the opening messages in and take them
// out.

func fillHello(m *replication.Message, h replication.Hello) { m.Data = wire.HelloBody(h, wire.Local) }

// helloOf returns the hello and what both ends can do, or an error that wraps
// wire.ErrVersion if that is nothing.
func helloOf(m *replication.Message) (replication.Hello, wire.Agreed, error) {
	h, p, err := wire.ParseHello(m.Data)
	if err != nil {
		return h, wire.Agreed{}, err
	}
	a, err := wire.Agree(wire.Local, p)
	return h, a, err
}

func fillHelloAck(m *replication.Message, a replication.HelloAck, v wire.Agreed) {
	m.Data = wire.HelloAckBody(a, v)
}

func helloAck(m *replication.Message) (replication.HelloAck, error) {
	a, _, err := wire.ParseHelloAck(m.Data, wire.Local)
	return a, err
}

// refusedWith is the error of a hello that was answered by a nack with that status. It wraps wire.ErrVersion if that is why.
func refusedWith(st replication.Status) error {
	if st == replication.StatusVersion {
		return fmt.Errorf("refused: %w: this node speaks %d to %d and needs features %#x, the log of the other one says what it has; upgrade the older one",
			wire.ErrVersion, wire.Local.Min, wire.Local.Max, uint64(wire.Local.Needed))
	}
	return fmt.Errorf("refused: %s", st)
}

package volume

import (
	"context"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/wire"
)

// localLink joins a volume to the replica on its own node: a session without a
// network, by direct calls.
type localLink struct {
	v      *Volume
	member int
	sess   replication.SessionID
	h      *host
	conn   core.ConnID
}

// connectLocal opens the session with the local replica; it ends with ctx.
func (v *Volume) connectLocal(ctx context.Context, h *host, s core.Session) {
	l := &localLink{v: v, member: s.To, sess: s.ID, h: h, conn: h.newConn()}
	h.post(hostInput{
		kind: hostHello, conn: l.conn, to: l, hello: s.Hello,
		msg: replication.Message{Type: replication.MsgHello, Session: s.ID, Term: s.Term},
	})
	context.AfterFunc(ctx, l.end)
}

// send implements sessionLink.
func (l *localLink) send(batch []replication.Message) {
	ins := hostInputSlices.Get().(*[]hostInput)
	for i := range batch {
		m := batch[i]
		// A volume that is given up takes its requests back while the disk has them still: the
		// payload is retained, the checksums are the volume's.
		m.Sums = nil
		*ins = append(*ins, hostInput{kind: hostMessage, conn: l.conn, msg: m})
	}
	l.h.post(*ins...)
	clear(*ins)
	*ins = (*ins)[:0]
	hostInputSlices.Put(ins)
}

// reply implements replyTo.
func (l *localLink) reply(batch []replication.Message) {
	ins := inputSlices.Get().(*[]volumeInput)
	for i := range batch {
		*ins = append(*ins, l.v.sessionInput(l.member, l.sess, l, &batch[i]))
	}
	l.v.post(*ins...)
	clear(*ins)
	*ins = (*ins)[:0]
	inputSlices.Put(ins)
}

// agreed implements replyTo.
func (l *localLink) agreed() wire.Agreed {
	return wire.Agreed{Version: wire.MaxVersion, Features: wire.Local.Able}
}

// end implements sessionLink and replyTo.
func (l *localLink) end() {
	go func() { // not from within the other's work
		l.h.post(hostInput{kind: hostConnClosed, conn: l.conn})
		l.v.post(volumeInput{kind: inSessionDown, member: l.member, sess: l.sess})
	}()
}

// sessionInput makes an input of a message that came on a session.
func (v *Volume) sessionInput(member int, sess replication.SessionID, l sessionLink, m *replication.Message) volumeInput {
	switch {
	case m.Type == replication.MsgHelloAck:
		ack, err := helloAck(m)
		releaseBuf(m)
		if err == nil {
			return volumeInput{kind: inSessionUp, member: member, sess: sess, link: l, ack: ack}
		}
		return volumeInput{kind: inSessionDown, member: member, sess: sess}
	case m.Type == replication.MsgNack && m.Seq == 0:
		return volumeInput{kind: inSessionRefused, member: member, sess: sess, msg: *m}
	default:
		return volumeInput{kind: inMessage, member: member, msg: *m}
	}
}

package core

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// TestCreditOfRefusals: a message that is refused gives back the room that its
// payload took, or the sender would come to a stop after enough of them.
func TestCreditOfRefusals(t *testing.T) {
	vol, id := replication.VolumeID{1}, replication.ReplicaID{2}
	r := NewReplica(ReplicaOptions{
		Volume: vol, Replica: id, Size: 1 << 20, Credit: 1 << 20,
		Meta: ReplicaMeta{Epoch: 1, Term: 1, State: replication.MemberInSync},
	})
	r.Hello(1, replication.Message{Type: replication.MsgHello, Session: 9, Term: 1}, replication.Hello{Volume: vol, Replica: id})
	for name, msg := range map[string]replication.Message{
		"damaged":        {Type: replication.MsgWrite, Session: 9, Seq: 1, Length: 8192, Status: replication.StatusCRC},
		"out of range":   {Type: replication.MsgWrite, Session: 9, Seq: 2, Offset: 1 << 20, Length: 8192, Data: make([]byte, 8192)},
		"of another one": {Type: replication.MsgWrite, Session: 8, Seq: 3, Length: 8192, Data: make([]byte, 8192)},
	} {
		r.Advance()
		r.Step(1, &msg)
		s := r.Ready().Send
		if len(s) != 1 || s[0].Msg.Type != replication.MsgNack || s[0].Msg.Credit != 8192 {
			t.Errorf("%s: answered by %+v, want a nack with the credit of 8192 bytes", name, s)
		}
	}
}

package wire

import (
	"errors"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

func TestAgree(t *testing.T) {
	const a, b, c Features = 1, 2, 4
	tests := []struct {
		name string
		x, y Proposal
		want Agreed
		err  error
	}{
		{"same", Local, Local, Agreed{Version: MaxVersion, Features: FeatureLeases | FeatureExamine | FeatureSnapshots}, nil},
		{"older, without snapshots", Local, Proposal{Min: 1, Max: 1, Able: FeatureLeases | FeatureExamine}, Agreed{Version: 1, Features: FeatureLeases | FeatureExamine}, nil},
		{"older, does not examine", Local, Proposal{Min: 1, Max: 1, Able: FeatureLeases}, Agreed{}, ErrVersion},
		{"older, without leases", Local, Proposal{Min: 1, Max: 1}, Agreed{}, ErrVersion},
		{"N and N-1", Proposal{Min: 4, Max: 5}, Proposal{Min: 3, Max: 4}, Agreed{Version: 4}, nil},
		{"N and N-2", Proposal{Min: 4, Max: 5}, Proposal{Min: 2, Max: 3}, Agreed{}, ErrVersion},
		{"features in common", Proposal{Min: 1, Max: 1, Able: a | b}, Proposal{Min: 1, Max: 1, Able: b | c}, Agreed{Version: 1, Features: b}, nil},
		{"needed and there", Proposal{Min: 1, Max: 1, Able: a, Needed: a}, Proposal{Min: 1, Max: 1, Able: a}, Agreed{Version: 1, Features: a}, nil},
		{"needed and missing", Proposal{Min: 1, Max: 1, Able: a, Needed: a}, Proposal{Min: 1, Max: 1}, Agreed{}, ErrVersion},
		{"nonsense range", Proposal{Min: 9, Max: 1}, Local, Agreed{}, ErrVersion},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, swap := range []bool{false, true} {
				x, y := tt.x, tt.y
				if swap {
					x, y = y, x
				}
				if got, err := Agree(x, y); got != tt.want || !errors.Is(err, tt.err) {
					t.Errorf("Agree(%+v, %+v) = %+v, %v", x, y, got, err)
				}
			}
		})
	}
}

func TestHelloBody(t *testing.T) {
	h := replication.Hello{Volume: replication.VolumeID{1}, Replica: replication.ReplicaID{2}, AttachID: replication.AttachID{3}, Epoch: 4, Gen: 5}
	p := Proposal{Min: 1, Max: 2, Able: 6, Needed: 2}
	b := HelloBody(h, p)
	if len(b) != helloLen {
		t.Errorf("%d bytes, PROTOCOL.md says %d", len(b), helloLen)
	}
	// A later version appends.
	for _, b := range [][]byte{b, append(b, "more"...)} {
		if gh, gp, err := ParseHello(b); gh != h || gp != p || err != nil {
			t.Errorf("got %+v, %+v, %v", gh, gp, err)
		}
	}
	for n := range helloLen {
		if _, _, err := ParseHello(b[:n]); !errors.Is(err, ErrFrame) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	b[0] ^= 1
	if _, _, err := ParseHello(b); !errors.Is(err, ErrFrame) {
		t.Errorf("wrong magic: %v", err)
	}
}

func TestHelloAckBody(t *testing.T) {
	a := replication.HelloAck{Boot: replication.BootID{1}, Instance: replication.UUID{2}, Credit: 3}
	p := Proposal{Min: 1, Max: 2, Able: 6, Needed: 2}
	g := Agreed{Version: 2, Features: 2}
	b := HelloAckBody(a, g)
	if len(b) != helloAckLen {
		t.Errorf("%d bytes, PROTOCOL.md says %d", len(b), helloAckLen)
	}
	for _, b := range [][]byte{b, append(b, "more"...)} {
		if ga, gg, err := ParseHelloAck(b, p); ga != a || gg != g || err != nil {
			t.Errorf("got %+v, %+v, %v", ga, gg, err)
		}
	}
	for n := range helloAckLen {
		if _, _, err := ParseHelloAck(b[:n], p); !errors.Is(err, ErrFrame) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	for _, g := range []Agreed{{Version: 3, Features: 2}, {Version: 0, Features: 2}, {Version: 1, Features: 2 | 8}, {Version: 1}} {
		if _, _, err := ParseHelloAck(HelloAckBody(a, g), p); !errors.Is(err, ErrVersion) {
			t.Errorf("%+v: %v", g, err)
		}
	}
}

// TestHelloOfAnotherVersion: what opens a session is read whatever version it is of, and then it is found that there is none in common.
func TestHelloOfAnotherVersion(t *testing.T) {
	for _, v := range []Version{0, MaxVersion + 1, 255} {
		theirs := Proposal{Min: v, Max: v}
		b := frame(t, replication.Message{Type: replication.MsgHello, Session: 1, Data: HelloBody(replication.Hello{Epoch: 7}, theirs)})
		b[offVersion] = byte(v)
		putCRC(b[:HeaderLen])
		ms, err := decode(b)
		if err != nil || len(ms) != 1 {
			t.Fatalf("version %d: %v, %v", v, ms, err)
		}
		h, p, err := ParseHello(ms[0].Data)
		if err != nil || h.Epoch != 7 || p != theirs {
			t.Errorf("version %d: %+v, %+v, %v", v, h, p, err)
		}
		if _, err := Agree(Local, p); !errors.Is(err, ErrVersion) {
			t.Errorf("version %d: %v", v, err)
		}
	}
}

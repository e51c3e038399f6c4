package nbd

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

func TestOptionReplies(t *testing.T) {
	s := startServer(t)
	attach(t, s, "vol", newMem(false))
	plain := infoData("vol")
	for _, tc := range []struct {
		name string
		opt  uint32
		data []byte
		want uint32
	}{
		{"peek export is not in use", 4, []byte("vol"), repErrUnsup},
		{"extended headers", 11, nil, repErrUnsup},
		{"unknown option", 0xdeadbeef, bytes.Repeat([]byte{1}, 5000), repErrUnsup},
		{"list", optList, nil, repAck},
		{"list with data", optList, []byte{0}, repErrInvalid},
		{"structured replies with data", optStructuredReply, []byte{0}, repErrInvalid},
		{"no tls here", optStartTLS, nil, repErrPolicy},
		{"info", optInfo, plain, repAck},
		{"info of an unknown export", optInfo, infoData("lov"), repErrUnknown},
		{"info of the default export", optInfo, infoData(""), repErrUnknown},
		{"go to an unknown export", optGo, infoData("lov"), repErrUnknown},
		{"info without data", optInfo, nil, repErrInvalid},
		{"info cut short", optInfo, plain[:len(plain)-1], repErrInvalid},
		{"info with more than announced", optInfo, append(bytes.Clone(plain), 0), repErrInvalid},
		{"info with fewer requests than announced", optInfo, append(bytes.Clone(plain[:len(plain)-2]), 0xff, 0xff), repErrInvalid},
		{"name longer than the option", optGo, []byte{0xff, 0xff, 0xff, 0xff, 'v', 0, 0}, repErrInvalid},
		{"name longer than a string may be", optGo, infoData(strings.Repeat("v", maxString+1)), repErrInvalid},
		{"name as long as a string may be", optGo, infoData(strings.Repeat("v", maxString)), repErrUnknown},
		{"name with a NUL", optGo, infoData("vol\x00"), repErrInvalid},
		{"too much data", optGo, make([]byte, maxOptionData+1), repErrTooBig},
		{"contexts before structured replies", optSetMetaContext, contextData("vol", contextAllocation), repErrInvalid},
		{"structured replies", optStructuredReply, nil, repAck},
		{"contexts of an unknown export", optSetMetaContext, contextData("lov", contextAllocation), repErrUnknown},
		{"contexts without data", optListMetaContext, nil, repErrInvalid},
		{"more queries than announced", optListMetaContext, append(contextData("vol"), 0), repErrInvalid},
		{"fewer queries than announced", optListMetaContext, append(contextData("vol")[:7], 0xff, 0xff, 0xff, 0xff), repErrInvalid},
		{"contexts", optSetMetaContext, contextData("vol", contextAllocation), repAck},
		{"info after all this", optInfo, plain, repAck},
		{"go after all this", optGo, plain, repAck},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, s)
			if tc.opt == optSetMetaContext && tc.want != repErrInvalid || tc.opt == optListMetaContext {
				c.useStructured()
			}
			if got := c.option(tc.opt, tc.data); got != tc.want {
				t.Errorf("reply %#x, want %#x", got, tc.want)
			}
			c.structured = c.structured || tc.opt == optStructuredReply && tc.want == repAck
			if tc.opt != optGo || tc.want != repAck {
				c.goExport("vol") // the handshake goes on
			}
			c.request(cmdRead, 0, 0, 4096, nil)
			c.wantRead(4096)
		})
	}
}

func TestHandshakeHangsUp(t *testing.T) {
	s := startServer(t)
	attach(t, s, "vol", newMem(false))
	option := func(magic uint64, opt, n uint32) []byte {
		b := binary.BigEndian.AppendUint64(nil, magic)
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, opt), n)
	}
	for _, tc := range []struct {
		name  string
		flags uint32
		send  []byte
	}{
		{"unknown client flag", 4, nil},
		{"option without magic", 3, option(1, optGo, 0)},
		{"huge unknown option", 3, option(magicOption, 99, 0xffffffff)},
		{"huge known option", 3, option(magicOption, optGo, maxOptionSkip+1)},
		{"option without the fixed newstyle", 0, option(magicOption, optList, 0)},
		{"unknown export", 3, append(option(magicOption, optExportName, 3), "lov"...)},
		{"http", 0x47455420, []byte("/ HTTP/1.1\r\n\r\n")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := connect(t, s)
			c.read(18)
			c.write(binary.BigEndian.AppendUint32(nil, tc.flags))
			_, _ = c.conn.Write(tc.send) // it may have hung up already
			c.wantEOF()
		})
	}
}

func TestOptionFlood(t *testing.T) {
	s := startServer(t)
	c := dial(t, s)
	for range maxOptions {
		if got := c.option(optList, nil); got != repAck {
			t.Fatalf("reply %#x", got)
		}
	}
	c.wantEOF()
}

func TestAbort(t *testing.T) {
	c := dial(t, startServer(t))
	if got := c.option(optAbort, []byte("goodbye")); got != repAck {
		t.Errorf("reply %#x", got)
	}
	c.wantEOF()
}

// TestExportName takes the old way in, with and without the padding.
func TestExportName(t *testing.T) {
	s := startServer(t)
	attach(t, s, "vol", newMem(false))
	for flags, padding := range map[uint32]int{0: oldZeroes, flagFixedNewstyle: oldZeroes, flagFixedNewstyle | flagNoZeroes: 0} {
		c := connect(t, s)
		c.read(18)
		c.write(binary.BigEndian.AppendUint32(nil, flags))
		c.sendOption(optExportName, []byte("vol"))
		b := c.read(10 + padding)
		if n := binary.BigEndian.Uint64(b); n != testSize {
			t.Errorf("size %d, want %d", n, testSize)
		}
		const want = flagHasFlags | flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes | flagCanMultiConn
		if f := binary.BigEndian.Uint16(b[8:]); f != want {
			t.Errorf("transmission flags %#x, want %#x", f, want)
		}
		if !bytes.Equal(b[10:], make([]byte, padding)) {
			t.Error("padding is not zeroes")
		}
		c.request(cmdRead, 0, 0, 4096, nil)
		c.wantRead(4096)
	}
}

// TestContexts checks what selects base:allocation and for which export.
func TestContexts(t *testing.T) {
	s := startServer(t)
	attach(t, s, "vol", newMem(false))
	attach(t, s, "other", newMem(false))
	for _, tc := range []struct {
		name    string
		opt     uint32
		queries []string
		found   bool
	}{
		{"list all", optListMetaContext, nil, true},
		{"list base", optListMetaContext, []string{"base:"}, true},
		{"list it", optListMetaContext, []string{"qemu:x", contextAllocation}, true},
		{"list others", optListMetaContext, []string{"qemu:", "base:other", "nonsense"}, false},
		{"set none", optSetMetaContext, nil, false},
		{"set wildcard", optSetMetaContext, []string{"base:"}, false},
		{"set it twice", optSetMetaContext, []string{contextAllocation, contextAllocation}, true},
		{"set others", optSetMetaContext, []string{"qemu:", "base:other", "nonsense"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, s)
			c.useStructured()
			c.sendOption(tc.opt, contextData("vol", tc.queries...))
			kind, data := c.optionReply(tc.opt)
			if found := kind == repMetaContext; found != tc.found {
				t.Fatalf("reply %#x; context found: %v, want %v", kind, found, tc.found)
			}
			if tc.found {
				if string(data[4:]) != contextAllocation {
					t.Errorf("context %q", data[4:])
				}
				kind, _ = c.optionReply(tc.opt)
			}
			if kind != repAck {
				t.Errorf("final reply %#x", kind)
			}
			c.goExport("vol")
			c.request(cmdBlockStatus, 0, 0, 4096, nil)
			if tc.found && tc.opt == optSetMetaContext {
				c.chunk(replyBlockStatus)
			} else {
				c.wantError(errnoInval)
			}
		})
	}
	t.Run("of another export", func(t *testing.T) {
		c := dial(t, s)
		c.useStructured()
		c.option(optSetMetaContext, contextData("other", contextAllocation))
		c.goExport("vol")
		c.request(cmdBlockStatus, 0, 0, 4096, nil)
		c.wantError(errnoInval)
	})
	t.Run("lost by a failure", func(t *testing.T) {
		c := dial(t, s)
		c.useStructured()
		c.option(optSetMetaContext, contextData("vol", contextAllocation))
		c.option(optSetMetaContext, contextData("lov", contextAllocation))
		c.goExport("vol")
		c.request(cmdBlockStatus, 0, 0, 4096, nil)
		c.wantError(errnoInval)
	})
}

// TestInfo checks the block sizes and the canonical name.
func TestInfo(t *testing.T) {
	s := startServer(t)
	attach(t, s, "vol", newMem(false))
	c := dial(t, s)
	c.sendOption(optInfo, infoData("vol", infoName, 77))
	got := map[uint16][]byte{}
	for {
		kind, data := c.optionReply(optInfo)
		if kind == repAck {
			break
		}
		if kind != repInfo {
			t.Fatalf("reply %#x", kind)
		}
		got[binary.BigEndian.Uint16(data)] = data[2:]
	}
	if b := got[infoExport]; len(b) != 10 || binary.BigEndian.Uint64(b) != testSize {
		t.Errorf("export info % x", b)
	}
	if b := got[infoBlockSize]; len(b) != 12 || binary.BigEndian.Uint32(b) != 4096 ||
		binary.BigEndian.Uint32(b[4:]) != 4096 || binary.BigEndian.Uint32(b[8:]) != 1<<20 {
		t.Errorf("block sizes % x", b)
	}
	if string(got[infoName]) != "vol" {
		t.Errorf("name %q", got[infoName])
	}
	if len(got) != 3 {
		t.Errorf("%d items of information, want 3", len(got))
	}
}

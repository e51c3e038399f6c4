package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
)

// What a client may ask of a server in one handshake.
const (
	maxOptions    = 256
	maxOptionData = 64 << 10 // more is not read into memory, bytes
	maxOptionSkip = 1 << 20  // more drops the connection, bytes
)

// handshake is the first phase of one connection. It reads exactly what is its
// own and buffers nothing, so that neither bytes of the next phase nor plain text
// sent before TLS can slip through.
type handshake struct {
	srv      *Server
	conn     net.Conn // after the upgrade to TLS, that
	endpoint *Endpoint

	fixed    bool // the client knows the fixed newstyle
	noZeroes bool
	secure   bool // over TLS

	structured bool
	context    string // export for which base:allocation is selected, if selected
	selected   bool

	chosen *holder
	out    []byte // replies to the current option
}

// unknownExport is for the people behind a client that asks for an export that is not there.
var unknownExport = []byte("nbd: no such export; it ends with its attachment, and the next attachment has another name")

// unknown says that there is no such export. A server that is closing does not know: whoever is told so gives up.
func (h *handshake) unknown(opt uint32) {
	if _, open := h.srv.names(); !open {
		h.reply(opt, repErrShutdown, nil)
		return
	}
	h.reply(opt, repErrUnknown, unknownExport)
}

// allocation says whether base:allocation is selected for the chosen export.
func (h *handshake) allocation() bool {
	return h.structured && h.selected && h.context == h.chosen.export.id
}

// run negotiates until the client has chosen an export, and returns its hold on that.
func (h *handshake) run() (*holder, error) {
	greeting := binary.BigEndian.AppendUint64(nil, magicServer)
	greeting = binary.BigEndian.AppendUint64(greeting, magicOption)
	greeting = binary.BigEndian.AppendUint16(greeting, flagFixedNewstyle|flagNoZeroes)
	if _, err := h.conn.Write(greeting); err != nil {
		return nil, err
	}
	var b [4]byte
	if _, err := io.ReadFull(h.conn, b[:]); err != nil {
		return nil, err
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return nil, fmt.Errorf("%w: unknown client flags %#x", errProtocol, flags)
	}
	h.fixed = flags&flagFixedNewstyle != 0
	h.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		if err := h.option(); err != nil {
			if h.chosen != nil {
				h.chosen.release()
			}
			return nil, err
		}
		if h.chosen != nil {
			return h.chosen, nil
		}
	}
	return nil, fmt.Errorf("%w: more than %d options", errProtocol, maxOptions)
}

// option reads one option and replies to it.
func (h *handshake) option() error {
	var head [optionHead]byte
	if _, err := io.ReadFull(h.conn, head[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(head[:]) != magicOption {
		return fmt.Errorf("%w: option without the magic number", errProtocol)
	}
	opt := binary.BigEndian.Uint32(head[8:])
	n := binary.BigEndian.Uint32(head[12:])
	if n > maxOptionSkip {
		return fmt.Errorf("%w: option with %d bytes of data", errProtocol, n)
	}
	if !h.fixed && opt != optExportName {
		return fmt.Errorf("%w: option %d without the fixed newstyle", errProtocol, opt)
	}
	h.out = h.out[:0]
	if n > maxOptionData {
		if _, err := io.CopyN(io.Discard, h.conn, int64(n)); err != nil {
			return err
		}
		if opt == optExportName {
			return fmt.Errorf("%w: export name of %d bytes", errProtocol, n)
		}
		h.reply(opt, repErrTooBig, nil)
		return h.send()
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(h.conn, data); err != nil {
		return err
	}
	if err := h.dispatch(opt, data); err != nil {
		return err
	}
	if err := h.send(); err != nil {
		return err
	}
	if opt == optAbort {
		return errDisconnect
	}
	return nil
}

// dispatch executes an option and leaves the replies in h.out.
func (h *handshake) dispatch(opt uint32, data []byte) error {
	if h.endpoint.RequireTLS && !h.secure && opt != optStartTLS && opt != optAbort {
		if opt == optExportName {
			return fmt.Errorf("%w: export chosen without TLS", errProtocol)
		}
		h.reply(opt, repErrTLSReqd, nil)
		return nil
	}
	empty := len(data) == 0
	switch opt {
	case optExportName:
		return h.exportName(data)
	case optAbort:
		h.reply(opt, repAck, nil)
	case optList:
		h.list(empty)
	case optStartTLS:
		return h.startTLS(empty)
	case optInfo, optGo:
		return h.info(opt, data)
	case optStructuredReply:
		if empty {
			h.structured = true
		}
		h.ackIf(opt, empty)
	case optListMetaContext, optSetMetaContext:
		return h.contexts(opt, data)
	default:
		h.reply(opt, repErrUnsup, nil)
	}
	return nil
}

// exportName serves NBD_OPT_EXPORT_NAME, the one option that cannot be refused but by hanging up.
func (h *handshake) exportName(name []byte) error {
	if err := h.srv.await(string(name)); err != nil {
		return err
	}
	if !validString(name) || !h.choose(string(name)) {
		return fmt.Errorf("%w: unknown export %.64q", errProtocol, name)
	}
	i := h.chosen.export.dev.Info()
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(i.Size))
	h.out = binary.BigEndian.AppendUint16(h.out, h.transmissionFlags(i))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, oldZeroes)...)
	}
	return nil
}

// choose takes a hold on the export of a name.
func (h *handshake) choose(name string) bool {
	if e := h.srv.find(name); e != nil {
		h.chosen = e.hold()
	}
	return h.chosen != nil
}

func (h *handshake) list(empty bool) {
	names, open := h.srv.names()
	switch {
	case !empty:
		h.reply(optList, repErrInvalid, nil)
	case !open:
		h.reply(optList, repErrShutdown, nil)
	default:
		slices.Sort(names)
		for _, name := range names {
			h.reply(optList, repServer, append(binary.BigEndian.AppendUint32(nil, uint32(len(name))), name...))
		}
		h.reply(optList, repAck, nil)
	}
}

// startTLS upgrades the connection. What was negotiated before does not count any more.
func (h *handshake) startTLS(empty bool) error {
	switch {
	case h.secure || !empty:
		h.reply(optStartTLS, repErrInvalid, nil)
		return nil
	case h.endpoint.TLS == nil:
		h.reply(optStartTLS, repErrPolicy, nil)
		return nil
	}
	h.reply(optStartTLS, repAck, nil)
	if err := h.send(); err != nil {
		return err
	}
	c := tls.Server(h.conn, h.endpoint.TLS)
	if err := c.Handshake(); err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	h.conn, h.secure = c, true
	h.structured, h.selected, h.context = false, false, ""
	return nil
}

// info serves NBD_OPT_INFO, and NBD_OPT_GO, which also chooses the export.
func (h *handshake) info(opt uint32, data []byte) error {
	name, wants, err := parseInfo(data)
	if err != nil {
		h.reply(opt, repErrInvalid, nil)
		return nil
	}
	if err := h.srv.await(name); err != nil {
		return err
	}
	e := h.srv.find(name)
	if e == nil || e.gone() || opt == optGo && !h.choose(name) {
		h.unknown(opt)
		return nil
	}
	if h.chosen != nil {
		e = h.chosen.export
	}
	i := e.dev.Info()
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(i.Size))
	b = binary.BigEndian.AppendUint16(b, h.transmissionFlags(i))
	h.reply(opt, repInfo, b)

	b = binary.BigEndian.AppendUint16(nil, infoBlockSize)
	b = binary.BigEndian.AppendUint32(b, uint32(i.BlockSize))
	b = binary.BigEndian.AppendUint32(b, uint32(max(i.BlockSize, block.SectorSize)))
	b = binary.BigEndian.AppendUint32(b, maxPayload)
	h.reply(opt, repInfo, b)

	if slices.Contains(wants, infoName) {
		h.reply(opt, repInfo, append(binary.BigEndian.AppendUint16(nil, infoName), e.id...))
	}
	h.reply(opt, repAck, nil)
	return nil
}

// contexts serves NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
func (h *handshake) contexts(opt uint32, data []byte) error {
	if opt == optSetMetaContext {
		h.selected, h.context = false, "" // also when this fails
	}
	name, queries, err := parseContexts(data)
	if err != nil || !h.structured {
		h.reply(opt, repErrInvalid, nil)
		return nil
	}
	if err := h.srv.await(name); err != nil {
		return err
	}
	if h.srv.find(name) == nil {
		h.unknown(opt)
		return nil
	}
	id := uint32(0)
	found := listsAllocation(queries)
	if opt == optSetMetaContext {
		id = contextAllocationID
		found = slices.Contains(queries, contextAllocation)
		h.selected, h.context = found, name
	}
	if found {
		h.reply(opt, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), contextAllocation...))
	}
	h.reply(opt, repAck, nil)
	return nil
}

// abilities are those of devices, as transmission flags.
var abilities = [...]struct {
	caps block.Caps
	flag uint16
}{
	{block.CapFlush, flagSendFlush},
	{block.CapFUA, flagSendFUA},
	{block.CapDiscard, flagSendTrim},
	{block.CapWriteZeroes, flagSendWriteZeroes},
}

// transmissionFlags says what clients may ask of a device of i.
func (h *handshake) transmissionFlags(i block.Info) uint16 {
	f := uint16(flagHasFlags | flagCanMultiConn)
	for _, x := range abilities {
		if i.Caps&x.caps != 0 {
			f |= x.flag
		}
	}
	if h.structured {
		f |= flagSendDF
	}
	return f
}

func (h *handshake) ackIf(opt uint32, ok bool) {
	if ok {
		h.reply(opt, repAck, nil)
	} else {
		h.reply(opt, repErrInvalid, nil)
	}
}

// reply adds an option reply to h.out.
func (h *handshake) reply(opt, kind uint32, data []byte) {
	h.out = binary.BigEndian.AppendUint64(h.out, magicOptReply)
	h.out = binary.BigEndian.AppendUint32(h.out, opt)
	h.out = binary.BigEndian.AppendUint32(h.out, kind)
	h.out = binary.BigEndian.AppendUint32(h.out, uint32(len(data)))
	h.out = append(h.out, data...)
}

// send sends h.out.
func (h *handshake) send() error {
	if len(h.out) == 0 {
		return nil
	}
	_, err := h.conn.Write(h.out)
	h.out = h.out[:0]
	return err
}

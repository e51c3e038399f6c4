package nbd

import (
	"encoding/binary"
	"errors"
	"strings"
)

// errOption means that an option's data do not have the form that the specification gives them.
var errOption = errors.New("nbd: malformed option")

// decoder takes an option's data apart. After an error every call returns zero values.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n uint32) []byte {
	if d.bad || uint64(n) > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) uint16() uint16 {
	if p := d.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	if p := d.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if p := d.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// string takes a string with its length before it.
func (d *decoder) string() string {
	p := d.take(d.uint32())
	if !validString(p) {
		d.bad = true
		return ""
	}
	return string(p)
}

// end reports whether exactly all data were used and well formed.
func (d *decoder) end() error {
	if d.bad || len(d.b) > 0 {
		return errOption
	}
	return nil
}

// validString says whether p may be a string of the protocol.
func validString(p []byte) bool {
	if len(p) > maxString {
		return false
	}
	for _, c := range p {
		if c == 0 {
			return false
		}
	}
	return true
}

// parseInfo decodes the data of NBD_OPT_INFO and NBD_OPT_GO: the export's name and the information asked for.
func parseInfo(data []byte) (name string, wants []uint16, err error) {
	d := decoder{b: data}
	name = d.string()
	n := d.uint16()
	if int(n)*2 != len(d.b) {
		return "", nil, errOption
	}
	for range n {
		wants = append(wants, d.uint16())
	}
	return name, wants, d.end()
}

// parseContexts decodes the data of the two META_CONTEXT options.
func parseContexts(data []byte) (name string, queries []string, err error) {
	d := decoder{b: data}
	name = d.string()
	n := d.uint32()
	for i := uint32(0); i < n && !d.bad; i++ {
		queries = append(queries, d.string())
	}
	if err := d.end(); err != nil {
		return "", nil, err
	}
	return name, queries, nil
}

// listsAllocation says whether base:allocation answers the queries of NBD_OPT_LIST_META_CONTEXT.
func listsAllocation(queries []string) bool {
	for _, q := range queries {
		if q == contextAllocation || q == contextAllocation[:strings.IndexByte(contextAllocation, ':')+1] {
			return true
		}
	}
	return len(queries) == 0
}

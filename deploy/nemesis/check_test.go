package nemesis

import (
	"errors"
	"testing"
)

// Of two attachments, the second was there at 200.
var twoAttachments = []Attachment{{Active: 1}, {Active: 200}}

func wrote(attachment int, version, call, ret int64) *Request {
	return &Request{Attachment: attachment, Kind: Write, Versions: []int64{version}, Call: call, Return: ret, OK: ret != 0}
}

func read(attachment int, version, call, ret int64) *Request {
	r := wrote(attachment, version, call, ret)
	r.Kind = Read
	return r
}

// TestCheck holds histories of one block against what a register allows, and no more.
func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		right bool
		rs    []*Request
	}{
		"nothing":                               {true, nil},
		"what was there":                        {true, []*Request{read(0, 0, 10, 20)}},
		"what was never there":                  {false, []*Request{read(0, 1, 10, 20)}},
		"what was written":                      {true, []*Request{wrote(0, 1, 10, 20), read(0, 1, 30, 40)}},
		"a lost write":                          {false, []*Request{wrote(0, 1, 10, 20), read(0, 0, 30, 40)}},
		"either of two at once":                 {true, []*Request{wrote(0, 1, 10, 30), wrote(0, 2, 10, 30), read(0, 1, 40, 50)}},
		"first one, then the other":             {false, []*Request{wrote(0, 1, 10, 30), wrote(0, 2, 10, 30), read(0, 1, 40, 50), read(0, 2, 60, 70)}},
		"read before it is acknowledged":        {true, []*Request{wrote(0, 1, 10, 50), read(0, 1, 20, 30)}},
		"and gone again":                        {false, []*Request{wrote(0, 1, 10, 50), read(0, 1, 20, 30), read(0, 0, 31, 40)}},
		"not acknowledged and there":            {true, []*Request{wrote(0, 1, 10, 0), read(0, 1, 30, 40)}},
		"not acknowledged and not there":        {true, []*Request{wrote(0, 1, 10, 0), read(0, 0, 30, 40)}},
		"not acknowledged, there and gone":      {false, []*Request{wrote(0, 1, 10, 0), read(0, 1, 30, 40), read(0, 0, 50, 60)}},
		"not acknowledged and there later":      {true, []*Request{wrote(0, 1, 10, 0), read(0, 0, 30, 40), read(0, 1, 50, 60)}},
		"there after the takeover":              {true, []*Request{wrote(0, 1, 90, 0), read(1, 1, 210, 220)}},
		"not there after it":                    {true, []*Request{wrote(0, 1, 90, 0), read(1, 0, 210, 220)}},
		"there long after it":                   {false, []*Request{wrote(0, 1, 90, 0), read(1, 0, 210, 220), read(1, 1, 230, 240)}},
		"acknowledged and lost by it":           {false, []*Request{wrote(0, 1, 50, 60), read(1, 0, 210, 220)}},
		"late by it":                            {false, []*Request{wrote(1, 1, 210, 220), read(0, 0, 230, 240)}},
		"late, of the attachment that is":       {false, []*Request{wrote(1, 1, 210, 220), read(1, 0, 230, 240)}},
		"by the old what the new has written":   {true, []*Request{wrote(1, 1, 210, 220), read(0, 1, 230, 240)}},
		"acknowledged to the old, not there":    {false, []*Request{wrote(0, 1, 210, 220), read(1, 0, 230, 240)}},
		"damaged":                               {false, []*Request{wrote(0, 1, 10, 20), read(0, Damaged, 30, 40)}},
		"a failed read says nothing":            {true, []*Request{read(0, 7, 10, 0)}},
		"a block that the request is not about": {true, []*Request{{Kind: Write, First: 1, Versions: []int64{9}, Call: 10, Return: 20, OK: true}, read(0, 0, 30, 40)}},
	} {
		h := History{Start: []int64{0}, Attachments: twoAttachments, Requests: c.rs}
		if err := Check(h); (err == nil) != c.right || err != nil && !errors.Is(err, ErrHistory) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckWide wants each block of a request held against its own versions.
func TestCheckWide(t *testing.T) {
	h := History{Start: []int64{0, 0, 0}, Attachments: twoAttachments, Requests: []*Request{
		{Kind: Write, First: 1, Versions: []int64{5, 5}, Call: 10, Return: 20, OK: true},
		{Kind: Read, First: 0, Versions: []int64{0, 5, 5}, Call: 30, Return: 40, OK: true},
	}}
	if err := Check(h); err != nil {
		t.Error(err)
	}
	h.Requests[1].Versions[2] = 0
	if Check(h) == nil {
		t.Error("the last block was lost")
	}
}

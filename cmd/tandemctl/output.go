package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Values of -o.
const (
	outputTable = "table"
	outputJSON  = "json"
)

// print writes an answer: msg as JSON, or what table writes.
func (a *app) print(msg proto.Message, table func(w io.Writer)) error {
	if a.flags.output != outputJSON {
		table(a.stdout)
		return nil
	}
	// Every field is there, under the name it has in the .proto.
	data, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(msg)
	if err != nil {
		return fmt.Errorf("tandemctl: cannot write the answer as JSON: %w", err)
	}
	return a.printJSON(data)
}

// printJSON writes data with one fixed layout: protojson varies its spaces on purpose.
func (a *app) printJSON(data []byte) error {
	var compact, b bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return fmt.Errorf("tandemctl: cannot write the answer as JSON: %w", err)
	}
	if err := json.Indent(&b, compact.Bytes(), "", "  "); err != nil {
		return fmt.Errorf("tandemctl: cannot write the answer as JSON: %w", err)
	}
	fmt.Fprintln(a.stdout, b.String())
	return nil
}

// table writes rows in columns; the first row is the head. An empty cell shows as "-".
func table(w io.Writer, rows ...[]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, r := range rows {
		for i, cell := range r {
			if cell == "" {
				cell = "-"
			}
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, cell)
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush() // as fmt.Fprintln: a closed terminal is nobody's loss
}

// fields writes "Name : value" lines.
func fields(w io.Writer, pairs ...string) {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		width = max(width, len(pairs[i]))
	}
	for i := 0; i < len(pairs); i += 2 {
		value := pairs[i+1]
		if value == "" {
			value = "-"
		}
		fmt.Fprintf(w, "%-*s : %s\n", width, pairs[i], value)
	}
}

func bytesText(n uint64) string { return humanize.IBytes(n) }

func rateText(n uint64) string { return humanize.IBytes(n) + "/s" }

// timeText shows milliseconds since 1970; 0 is unknown.
func timeText(unixMS int64) string {
	if unixMS == 0 {
		return "-"
	}
	return time.UnixMilli(unixMS).UTC().Format("2006-01-02 15:04:05 UTC")
}

// agoText shows how long ago it was.
func (a *app) agoText(unixMS int64) string {
	if unixMS == 0 {
		return "never"
	}
	return a.now().Sub(time.UnixMilli(unixMS)).Round(time.Second).String() + " ago"
}

// rttText shows microseconds.
func rttText(us uint64) string {
	return fmt.Sprintf("%.2f ms", float64(us)/1000)
}

// enumText shows an enum value without its prefix, as the glossary has it.
func enumText(e fmt.Stringer, prefix string) string {
	s := strings.TrimPrefix(e.String(), prefix)
	if s == "UNSPECIFIED" {
		return "unknown"
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func labelsText(labels map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}

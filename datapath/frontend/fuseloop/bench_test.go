package fuseloop

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
)

// null takes everything and keeps nothing: what is left is the front end.
type null struct{ size int64 }

func (n *null) Info() block.Info {
	return block.Info{Size: n.size, BlockSize: 4096, Caps: block.CapFlush | block.CapFUA | block.CapDiscard | block.CapWriteZeroes}
}
func (n *null) Close() error { return nil }
func (n *null) Submit(batch []*block.Request) {
	for _, r := range batch {
		r.By.Complete(r, nil)
	}
}

// BenchmarkFio prints what the front end itself costs: fio on a device that does
// nothing, requests per second and MB/s.
func BenchmarkFio(b *testing.B) {
	if err := Available(); err != nil {
		b.Skip(err)
	}
	for _, job := range []string{
		"--rw=randwrite --bs=4k --iodepth=1",
		"--rw=randwrite --bs=4k --iodepth=32",
		"--rw=randread --bs=4k --iodepth=32",
		"--rw=write --bs=128k --iodepth=16",
		"--rw=read --bs=128k --iodepth=16",
	} {
		b.Run(strings.ReplaceAll(job, "--", ""), func(b *testing.B) {
			f, err := New(Options{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			a, err := f.Attach(b.Context(), "vol", &null{1 << 30})
			if err != nil {
				b.Fatal(err)
			}
			args := append(strings.Fields(job), "--name=j", "--filename="+a.Path(), "--ioengine=io_uring", "--direct=1",
				"--size=1g", "--time_based", "--runtime=3", "--norandommap", "--output-format=terse")
			f3 := fioRun(b, args)
			b.ReportMetric(f3.iops, "req/s")
			b.ReportMetric(f3.mbs, "MB/s")
			b.ReportMetric(f3.p50, "us-p50")
			b.ReportMetric(0, "ns/op")
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

type fioResult struct{ iops, mbs, p50 float64 }

// fioRun runs fio and reads the fields of its terse output, version 3.
func fioRun(b *testing.B, args []string) fioResult {
	b.Helper()
	out, err := exec.Command("fio", args...).Output()
	if err != nil {
		b.Fatalf("fio %v: %v", args, err)
	}
	fields := strings.Split(strings.TrimSpace(string(out)), ";")
	field := func(n int) float64 {
		// Writes have their 41 fields behind those of reads.
		if !strings.Contains(args[0], "read") {
			n += 41
		}
		s := fields[n]
		if _, v, ok := strings.Cut(s, "="); ok {
			s = v
		}
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			b.Fatalf("fio: field %d is %q", n, fields[n])
		}
		return v
	}
	return fioResult{iops: field(7), mbs: field(6) * 1024 / 1e6, p50: field(22)}
}

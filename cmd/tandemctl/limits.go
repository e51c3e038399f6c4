package main

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/tandem-storage/tandem/cmd/internal/config"
	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// limitFlags are the flags that bound what consumers get of a volume.
type limitFlags struct {
	iops      int64
	bandwidth string
}

func (l *limitFlags) register(f *pflag.FlagSet) {
	f.Int64Var(&l.iops, "iops", 0, "at most so many `requests` in a second, 10 or more; 0: no limit")
	f.StringVar(&l.bandwidth, "bandwidth", "0", "at most so many `bytes` in a second, read and written, as in 100MiB, 1MiB or more; 0: no limit")
}

// given reports whether any flag was.
func (l *limitFlags) given(f *pflag.FlagSet) bool { return f.Changed("iops") || f.Changed("bandwidth") }

// apply changes what the flags that were given say.
func (l *limitFlags) apply(f *pflag.FlagSet, p *pb.Limits) error {
	if f.Changed("iops") {
		p.Iops = l.iops
	}
	if f.Changed("bandwidth") {
		n, err := config.ParseSize(l.bandwidth)
		if err != nil {
			return usageError("--bandwidth: %s", strings.TrimPrefix(err.Error(), "config: "))
		}
		p.BandwidthBytesPerSecond = int64(n)
	}
	return nil
}

// priorityFlag is how resyncs of a volume stand to those of others.
type priorityFlag string

const priorityFlagName = "resync-priority"

func (p *priorityFlag) register(f *pflag.FlagSet) {
	f.StringVar((*string)(p), priorityFlagName, "normal", "how its resyncs stand to those of other volumes: `low`, normal or high")
}

func (p *priorityFlag) given(f *pflag.FlagSet) bool { return f.Changed(priorityFlagName) }

// value is what the flag says, not specified if it was not given.
func (p *priorityFlag) value(f *pflag.FlagSet) (pb.ResyncPriority, error) {
	if !p.given(f) {
		return pb.ResyncPriority_RESYNC_PRIORITY_UNSPECIFIED, nil
	}
	v, ok := pb.ResyncPriority_value["RESYNC_PRIORITY_"+strings.ToUpper(string(*p))]
	if !ok || v == 0 || strings.ToLower(string(*p)) != string(*p) {
		return 0, usageError("--%s %q: use low, normal or high", priorityFlagName, *p)
	}
	return pb.ResyncPriority(v), nil
}

// priorityText is normal also for what an older daemon tells.
func priorityText(p pb.ResyncPriority) string {
	if p == pb.ResyncPriority_RESYNC_PRIORITY_UNSPECIFIED {
		p = pb.ResyncPriority_RESYNC_PRIORITY_NORMAL
	}
	return strings.ToLower(enumText(p, "RESYNC_PRIORITY_"))
}

// limitsOrNil leaves out what bounds nothing.
func limitsOrNil(l *pb.Limits) *pb.Limits {
	if l.GetIops() == 0 && l.GetBandwidthBytesPerSecond() == 0 {
		return nil
	}
	return l
}

func limitsText(l *pb.Limits) string {
	var parts []string
	if n := l.GetIops(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d IOPS", n))
	}
	if n := l.GetBandwidthBytesPerSecond(); n > 0 {
		parts = append(parts, bytesText(uint64(n))+"/s")
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ", ")
}

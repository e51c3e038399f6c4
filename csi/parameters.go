package csi

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	selector "k8s.io/apimachinery/pkg/labels"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Values of parameters.
const (
	protectionAvailability = "max-availability"
	protectionProtection   = "max-protection"
	failoverManual         = "manual"
	failoverAutomatic      = "automatic"
	spaceThin              = "thin"
	spaceThick             = "thick"
)

// contextMkfs is where a volume context carries the options of mkfs to the node.
const contextMkfs = "mkfsOptions"

// paramEncryption is reserved: whoever asks for it is not to believe that he has it.
const paramEncryption = "encryption"

// Parameter is one that a StorageClass may set, or a VolumeAttributesClass if it is Mutable.
type Parameter struct {
	Name    string
	Mutable bool
	Values  string // what it may be
	Default string
	Text    string
	set     func(r *volumepb.CreateVolumeRequest, v string) bool // false: not a value of it. nil: it is reserved, and takes none
}

// Parameters returns all that are known or reserved, by name.
func Parameters() []Parameter {
	return []Parameter{
		{"apart", false, "a selector, as in `app=db`", "none", "Replicas lie on no node that has one of a volume with these labels.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			placing(r).Apart = v
			return isSelector(v)
		}},
		{"bandwidth", true, "bytes per second with a binary unit, as in `100MiB`; `1MiB` or more, `0`", "`0`: no limit", "What the pod reads and writes in a second at the most.", func(r *volumepb.CreateVolumeRequest, v string) (ok bool) {
			limits(r).BandwidthBytesPerSecond, ok = bandwidth(v)
			return ok
		}},
		{"domains", false, "names, separated by commas", "all", "Cluster domains that take replicas.", func(r *volumepb.CreateVolumeRequest, v string) (ok bool) {
			r.Domains, ok = names(v)
			return ok
		}},
		{paramEncryption, false, "none", "none", "Reserved. Nothing is encrypted yet: a class that sets it, to whatever value, is refused.", nil},
		{"failover", false, "`manual`, `automatic`", "`manual`", "Who attaches the volume elsewhere when its domain is lost. `manual` leaves it to Kubernetes, which starts the pod elsewhere; `automatic` lets the arbiters do it, for consumers outside of Kubernetes.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			r.ManualFailover = v == failoverManual
			return v == failoverManual || v == failoverAutomatic
		}},
		{paramGroup, false, "1 to 128 letters, digits, `.`, `_` and `-`, in which `" + claimNamespace + "` is the namespace of the claim", "none",
			"The consistency group that the volume is in from its beginning until it is deleted. All with the same value are in one, of all namespaces and Kubernetes of the Tandem cluster; at most 50. It is made with its first volume, whose `failover` is the group's, and goes with the last.",
			func(r *volumepb.CreateVolumeRequest, v string) bool {
				r.Group = v
				return isGroup(strings.ReplaceAll(v, claimNamespace, "n"))
			}},
		{"iops", true, "10 or more, `0`", "`0`: no limit", "How many requests the pod makes in a second at the most. A flush is none.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			n, err := strconv.ParseUint(v, 10, 31)
			limits(r).Iops = int64(n)
			return err == nil && (n == 0 || n >= 10)
		}},
		{"labels", false, "`name=value`, separated by commas", "none", "Labels of the volume, by which `near` and `apart` of others select it.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			return addLabels(r, v)
		}},
		{contextMkfs, false, "arguments, separated by spaces", "none", "Further arguments of mkfs. No paths, no quotes.", func(_ *volumepb.CreateVolumeRequest, v string) bool {
			_, ok := mkfsOptions(v)
			return ok
		}},
		{"near", false, "a selector, as in `app=db`", "none", "Replicas lie on nodes only that have one of a volume with these labels.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			placing(r).Near = v
			return isSelector(v)
		}},
		{"needDomains", true, "names, separated by commas", "none", "Domains of which each has to have a replica in sync for a write to be confirmed.", func(r *volumepb.CreateVolumeRequest, v string) (ok bool) {
			needs(r).Domains, ok = names(v)
			return ok
		}},
		{"needInSync", true, "0 to 3", "0", "So many replicas have to be in sync for a write to be confirmed.", func(r *volumepb.CreateVolumeRequest, v string) (ok bool) {
			needs(r).InSync, ok = number(v, 0, 3)
			return ok
		}},
		{"needStall", true, "a duration, as in `30s`", "for as long as it takes", "How long writes wait for what `protection` and the needs ask for before they go on without.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			d, err := time.ParseDuration(v)
			needs(r).StallMs = d.Milliseconds()
			return err == nil && d >= 0
		}},
		{"nodes", false, "a selector, as in `disk=nvme,rack!=r7`", "all", "Nodes that take replicas, by the labels in their configuration.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			placing(r).Nodes = v
			return isSelector(v)
		}},
		{"poolClass", false, "1 to 255 characters", "any", "Class of the pools that take replicas, by the configuration of their nodes.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			placing(r).Class = v
			return v != "" && len(v) <= 255
		}},
		{"protection", true, "`max-availability`, `max-protection`", "`max-availability`", "What happens to writes while a replica is out of reach: they go on without it, or wait.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			r.Protection = map[string]volumepb.Protection{
				protectionAvailability: volumepb.Protection_PROTECTION_MAX_AVAILABILITY, protectionProtection: volumepb.Protection_PROTECTION_MAX_PROTECTION,
			}[v]
			return r.Protection != volumepb.Protection_PROTECTION_UNSPECIFIED
		}},
		{"replicas", false, "1 to 3", "one in each domain, at most 3", "Replicas, on as many nodes; one in each domain before a second in any.", func(r *volumepb.CreateVolumeRequest, v string) (ok bool) {
			r.Replicas, ok = number(v, 1, 3)
			return ok
		}},
		{"resyncPriority", true, "`low`, `normal`, `high`", "`normal`", "How resyncs of the volume stand to those of others, on nodes and pools that have more to resync than at once, or a rate that they share: a higher one begins before those that came up to ten minutes earlier, and above what each has in any case they share as 1 to 4 to 16.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			r.ResyncPriority = map[string]volumepb.ResyncPriority{
				"low": volumepb.ResyncPriority_RESYNC_PRIORITY_LOW, "normal": volumepb.ResyncPriority_RESYNC_PRIORITY_NORMAL, "high": volumepb.ResyncPriority_RESYNC_PRIORITY_HIGH,
			}[v]
			return r.ResyncPriority != volumepb.ResyncPriority_RESYNC_PRIORITY_UNSPECIFIED
		}},
		{"space", false, "`thin`, `thick`", "`thin`", "When a replica takes space of its pool: as it is written, or all of it when it is made. What is made from a snapshot or another volume is thin.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			r.Thick = v == spaceThick
			return v == spaceThin || v == spaceThick
		}},
		{"spread", false, "the name of a label", "none", "Every replica lies where this label of nodes has another value.", func(r *volumepb.CreateVolumeRequest, v string) bool {
			placing(r).Spread = v
			return v != "" && len(v) <= 255
		}},
	}
}

// sidecars is what parameters begin with that are not for a driver.
const sidecars = "csi.storage.k8s.io/"

// told are parameters that the external-provisioner adds; they become labels of the volume.
var told = []string{"csi.storage.k8s.io/pv/name", "csi.storage.k8s.io/pvc/name", toldNamespace}

const toldNamespace = "csi.storage.k8s.io/pvc/namespace"

const paramGroup = "group"

// claimNamespace stands for the namespace of the claim in paramGroup, written as the external-provisioner has it in the names of secrets.
const claimNamespace = "${pvc.namespace}"

var groupSyntax = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$`)

func isGroup(v string) bool { return groupSyntax.MatchString(v) }

// nameGroup writes the namespace of the claim into the name of the group that r asks for. INVALID_ARGUMENT: it is not known, or makes no name of it.
func nameGroup(r *volumepb.CreateVolumeRequest, params map[string]string) error {
	if !strings.Contains(r.Group, claimNamespace) {
		return nil
	}
	ns := params[toldNamespace]
	if ns == "" {
		return invalid("parameter %s: %s is not known: the external-provisioner has to run with --extra-create-metadata", paramGroup, claimNamespace)
	}
	r.Group = strings.ReplaceAll(r.Group, claimNamespace, ns)
	if !isGroup(r.Group) {
		return invalid("parameter %s: with the namespace of the claim it is %.200q, want 1 to 128 letters, digits, '.', '_' or '-', the first and the last a letter or digit", paramGroup, r.Group)
	}
	return nil
}

// apply sets what params say in r. With mutable only those that may be changed are known.
func apply(r *volumepb.CreateVolumeRequest, params map[string]string, mutable bool) error {
	all := map[string]Parameter{}
	for _, p := range Parameters() {
		switch _, set := params[p.Name]; {
		case p.set == nil && set:
			return invalid("parameter %s is reserved: nothing is encrypted yet, so that no value of it is true; leave it out, and encrypt the disks of the pools or what the pod writes", p.Name)
		case p.set != nil && (p.Mutable || !mutable):
			all[p.Name] = p
		}
	}
	for _, name := range slices.Sorted(maps.Keys(params)) {
		v := params[name]
		if !mutable && slices.Contains(told, name) {
			if r.Labels == nil {
				r.Labels = map[string]string{}
			}
			r.Labels[name] = v
			continue
		}
		p, ok := all[name]
		if !ok {
			return invalid("parameter %.64q is not known: use %s", name, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
		if !p.set(r, v) {
			return invalid("parameter %s: %.64q is none of its values: %s", name, v, p.Values)
		}
	}
	return nil
}

func needs(r *volumepb.CreateVolumeRequest) *volumepb.Needs {
	if r.Needs == nil {
		r.Needs = &volumepb.Needs{}
	}
	return r.Needs
}

func placing(r *volumepb.CreateVolumeRequest) *volumepb.Placing {
	if r.Placing == nil {
		r.Placing = &volumepb.Placing{}
	}
	return r.Placing
}

func isSelector(v string) bool {
	s, err := selector.Parse(v)
	return err == nil && !s.Empty() && len(v) <= 1024
}

// addLabels adds those of v to the volume's.
func addLabels(r *volumepb.CreateVolumeRequest, v string) bool {
	if r.Labels == nil {
		r.Labels = map[string]string{}
	}
	for pair := range strings.SplitSeq(v, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok || name == "" || len(name) > 255 || len(value) > 255 || slices.Contains(told, name) {
			return false
		}
		r.Labels[name] = value
	}
	return true
}

func limits(r *volumepb.CreateVolumeRequest) *volumepb.Limits {
	if r.Limits == nil {
		r.Limits = &volumepb.Limits{}
	}
	return r.Limits
}

var bandwidthSyntax = regexp.MustCompile(`^([0-9]{1,16})([KMGT]i)?B?$`)

// bandwidth reads bytes per second.
func bandwidth(v string) (int64, bool) {
	m := bandwidthSyntax.FindStringSubmatch(v)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	unit := map[string]int64{"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}[m[2]]
	if err != nil || n > maxSize/unit {
		return 0, false
	}
	return n * unit, n == 0 || n*unit >= 1<<20
}

func number(v string, least, most uint32) (uint32, bool) {
	n, err := strconv.ParseUint(v, 10, 32)
	return uint32(n), err == nil && uint32(n) >= least && uint32(n) <= most && len(v) == 1
}

var domainSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

func names(v string) ([]string, bool) {
	var out []string
	for n := range strings.SplitSeq(v, ",") {
		n = strings.TrimSpace(n)
		if !domainSyntax.MatchString(n) {
			return nil, false
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return slices.Compact(out), true
}

var mkfsSyntax = regexp.MustCompile(`^(-[A-Za-z]+|[A-Za-z0-9^][A-Za-z0-9=,._^:-]*)$`)

// mkfsOptions takes the arguments apart. None can name a file outside of the root directory, where mkfs runs.
func mkfsOptions(v string) ([]string, bool) {
	args := strings.Fields(v)
	for _, a := range args {
		if !mkfsSyntax.MatchString(a) {
			return nil, false
		}
	}
	return args, true
}

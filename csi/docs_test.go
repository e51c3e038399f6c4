package csi

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/reference/csi.md anew")

// The reference says what the driver does: its tables are made from the code.
func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("# csi.tandem.storage\n\n<!-- Written by: go test ./csi -run TestReference -update -->\n\n")
	b.WriteString("The CSI driver, served by every tandemd whose configuration has a [csi.socket](config.md). [How it works](../design/0026-csi.md), [what is missing](../limitations.md).\n\n")
	b.WriteString("## Parameters\n\nOf a StorageClass; those that may be changed of a VolumeAttributesClass too. Any other is refused with the list of these.\n\n")
	b.WriteString("| parameter | values | default | may be changed | what it does |\n|---|---|---|---|---|\n")
	for _, p := range Parameters() {
		change := "no"
		if p.Mutable {
			change = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", p.Name, p.Values, p.Default, change, p.Text)
	}
	fmt.Fprintf(&b, "\n`csi.storage.k8s.io/fstype` is `xfs` (the default, 300 MiB at least) or `ext4`. What `--extra-create-metadata` adds (`%s`) becomes labels of the volume.\n", strings.Join(told, "`, `"))
	b.WriteString("\nA VolumeSnapshotClass and a VolumeGroupSnapshotClass have `freeze`: `true` (the default) freezes the file system, where it is mounted, for the moment of the cut, so that what was written to files is in the snapshot; `false` does not, and it has what a power cut would leave. So it has where the file system cannot be frozen within 10 seconds: `tandemctl volume snapshot inspect` tells. A volume that is made from a snapshot or another volume has its size or more, and its replicas lie where that is held, in pools on XFS with reflink; it is never formatted.\n")
	fmt.Fprintf(&b, "\n## Topology\n\nA node has `%s` and `%s`. A volume is to be used in the domains that have a replica, on any node there. `allowedTopologies` of a StorageClass says where one of its replicas has to be at least: where a volume has one in each domain, as by default, it can be used in each, and only the first pod of a volume that waits for it is kept to them.\n", TopologyDomain, TopologyNode)
	b.WriteString("\n## Capabilities\n\n")
	d := New(Options{})
	ctrl, _ := d.ControllerGetCapabilities(t.Context(), nil)
	for _, c := range ctrl.GetCapabilities() {
		fmt.Fprintf(&b, "* controller `%s`\n", c.GetRpc().GetType())
	}
	groups, _ := d.GroupControllerGetCapabilities(t.Context(), nil)
	for _, c := range groups.GetCapabilities() {
		fmt.Fprintf(&b, "* group controller `%s`\n", c.GetRpc().GetType())
	}
	node, _ := d.NodeGetCapabilities(t.Context(), nil)
	for _, c := range node.GetCapabilities() {
		fmt.Fprintf(&b, "* node `%s`\n", c.GetRpc().GetType())
	}
	const file = "../docs/reference/csi.md"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil || string(have) != b.String() {
		t.Errorf("%s is not what the code says (%v): go test ./csi -run TestReference -update", file, err)
	}
}

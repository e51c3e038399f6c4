package main

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/audit/auditpb"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

var update = flag.Bool("update", false, "write the golden files and docs/reference/tandemctl.md anew")

// Every verb, as table and as JSON, right and wrong: testdata/<name>.golden.
func TestGolden(t *testing.T) {
	loop0At := func(dir string) func(*harness) {
		return func(h *harness) { h.mountTab = []mountEntry{{"/dev/sda1", "/"}, {"/dev/loop0", dir}} }
	}
	for _, tc := range []struct {
		name string
		args string // split at blanks
		set  func(*harness)
		fake func(*fakeDaemon)
	}{
		{name: "status", args: "status"},
		{name: "status-json", args: "status -o json"},
		{name: "status-kvdb-down", args: "status", fake: func(f *fakeDaemon) {
			f.status.Kvdb.Healthy, f.status.Kvdb.Error, f.status.Kvdb.Leader, f.status.Alerts, f.status.Rtts = false, "no leader", "", nil, nil
		}},
		{name: "cluster-list", args: "cluster list"},
		{name: "plan-restart-json", args: "cluster plan-restart a1 -o json"},
		{name: "plan-restart-waits", args: "cluster plan-restart a1", fake: func(f *fakeDaemon) { f.refusal = "resync kvdb" }},
		{name: "plan-restart-cancel", args: "cluster plan-restart a1 --cancel"},
		{name: "plan-restart-unknown", args: "cluster plan-restart a9", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: %q", clusterdomain.ErrNodeNotFound, "a9")
		}},
		{name: "domains-show", args: "cluster domains show"},
		{name: "domains-show-json", args: "cluster domains show -o json"},
		{name: "domains-activate", args: "cluster domains activate --name primary --reason back"},
		{name: "domains-activate-json", args: "cluster domains activate -n primary -o json"},
		{name: "domains-activate-unknown", args: "cluster domains activate --name nowhere", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: %q", clusterdomain.ErrDomainNotFound, "nowhere")
		}},
		{name: "domains-activate-no-name", args: "cluster domains activate"},
		{name: "domains-deactivate", args: "cluster domains deactivate --name primary --peer-lost --expect-epoch 4 --accept-data-loss data,ledger --yes"},
		{name: "domains-deactivate-loss-nobody-to-ask", args: "cluster domains deactivate --name primary --peer-lost --accept-data-loss data,ledger"},
		{name: "domains-deactivate-loss-no", args: "cluster domains deactivate --name primary --accept-data-loss data,ledger", set: func(h *harness) {
			h.stdinTTY, h.stdin = true, strings.NewReader("\n")
		}},
		{name: "domains-deactivate-loss-asked", args: "cluster domains deactivate --name primary --accept-data-loss data", set: func(h *harness) {
			h.stdinTTY, h.stdin = true, strings.NewReader("yes\n")
		}},
		{name: "domains-deactivate-last-copy", args: "cluster domains deactivate --name primary", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: domain primary: volumes data, ledger", clusterdomain.ErrLastCopy)
		}},
		{name: "domains-deactivate-changed", args: "cluster domains deactivate --name primary --expect-epoch 3", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: domain primary is at epoch 4, not 3", clusterdomain.ErrEpochChanged)
		}},
		{name: "domains-deactivate-no-volumes", args: "cluster domains deactivate --name primary --accept-data-loss ,"},
		{name: "domains-deactivate-epoch", args: "cluster domains deactivate --name primary --expect-epoch -1"},
		{name: "domains-show-lost", args: "cluster domains show", fake: func(f *fakeDaemon) { f.domains = lostDomains() }},
		{name: "failover-list", args: "failover list"},
		{name: "failover-list-json", args: "failover list -o json"},
		{name: "failover-report", args: "failover report"},
		{name: "failover-report-json", args: "failover report 2 -o json"},
		{name: "failover-report-two", args: "failover report 1 2"},
		{name: "failover-report-no-id", args: "failover report last"},
		{name: "failover-report-unknown", args: "failover report 9", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: 9", clusterdomain.ErrFailoverNotFound)
		}},
		{name: "volume-create-failover", args: "volume create data --size 1Gi --failover never"},
		{name: "domains-switchover", args: "cluster domains switchover --to dr-site --volume data --reason maintenance"},
		{name: "domains-switchover-group", args: "cluster domains switchover --to dr-site --group db --dry-run"},
		{name: "domains-switchover-all", args: "cluster domains switchover --to nowhere --dry-run"},
		{name: "domains-switchover-json", args: "cluster domains switchover --to dr-site --volume data -o json"},
		{name: "domains-switchover-refused", args: "cluster domains switchover --to dr-site --volume data", fake: func(f *fakeDaemon) {
			f.refusal = "it is shown as a device of this machine"
		}},
		{name: "domains-switchover-kept", args: "cluster domains switchover --to dr-site --volume data", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("move volume data to node b1: %w: node b1 was named and did not come to serve, the volume was taken back", replication.ErrStalled)
		}},
		{name: "domains-switchover-no-domain", args: "cluster domains switchover"},
		{name: "volume-create", args: "volume create data --size 2GiB --replicas 2"},
		{name: "volume-resize", args: "volume resize data --size 4GiB --reason growth"},
		{name: "volume-resize-size", args: "volume resize data --size 4"},
		{name: "volume-create-json", args: "volume create data --size 2GiB --protection max-protection --domains primary,dr-site -l app=db -o json"},
		{name: "volume-create-no-size", args: "volume create data"},
		{name: "volume-create-no-name", args: "volume create --size 1Gi"},
		{name: "volume-create-two-names", args: "volume create a b --size 1Gi"},
		{name: "volume-create-size-0", args: "volume create data --size 0"},
		{name: "volume-create-size-0Gi", args: "volume create data --size 0Gi"},
		{name: "volume-create-size-negative", args: "volume create data --size -1"},
		{name: "volume-create-size-10X", args: "volume create data --size 10X"},
		{name: "volume-create-size-10G", args: "volume create data --size 10G"},
		{name: "volume-create-size-bare", args: "volume create data --size 10"},
		{name: "volume-create-size-huge", args: "volume create data --size 99999999999Pi"},
		{name: "volume-create-replicas", args: "volume create data --size 1Gi --replicas -1"},
		{name: "volume-create-protection", args: "volume create data --size 1Gi --protection none"},
		{name: "volume-create-domains", args: "volume create data --size 1Gi --domains ,"},
		{name: "volume-create-misaligned", args: "volume create data --size 4097B -o json", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("volume data: size 4097: %w", block.ErrMisaligned)
		}},
		{name: "volume-create-unknown-domain", args: "volume create data --size 1Gi --domains nowhere", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: %q", clusterdomain.ErrDomainNotFound, "nowhere")
		}},
		{name: "volume-create-no-space", args: "volume create data --size 1Ti", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("pool /var/lib/tandem/pool of b1: %w", block.ErrNoSpace)
		}},
		{name: "volume-create-in-group", args: "volume create data --size 2GiB --group db"},
		{name: "group-create", args: "group create db --volumes data,ledger"},
		{name: "group-create-failover", args: "group create db --failover never"},
		{name: "group-create-elsewhere", args: "group create db --volumes data", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: volume data is in group other", volume.ErrInGroup)
		}},
		{name: "group-list", args: "group list"},
		{name: "group-inspect", args: "group inspect db"},
		{name: "group-inspect-json", args: "group inspect db -o json"},
		{name: "group-add", args: "group add db --volumes ledger"},
		{name: "group-add-nothing", args: "group add db --volumes ,"},
		{name: "group-remove", args: "group remove db --volumes ledger"},
		{name: "group-delete", args: "group delete db"},
		{name: "group-cut", args: "group cut db --hold 500ms"},
		{name: "group-cut-not", args: "group cut db", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: group db: node a1: volume data was not held to the end", volume.ErrNotCut)
		}},
		{name: "group-cut-hold", args: "group cut db --hold 0"},
		{name: "snapshot-create", args: "volume snapshot create data before-upgrade"},
		{name: "snapshot-create-no-name", args: "volume snapshot create data"},
		{name: "snapshot-create-no-reflink", args: "volume snapshot create data s", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: node b1: %w", replication.ErrNotCut, replication.ErrSnapshotUnsupported)
		}},
		{name: "snapshot-list", args: "volume snapshot list"},
		{name: "snapshot-list-space", args: "volume snapshot list --space"},
		{name: "snapshot-revert", args: "volume snapshot revert data before-upgrade -y"},
		{name: "snapshot-revert-abandon", args: "volume snapshot revert data --abandon -y"},
		{name: "snapshot-revert-unasked", args: "volume snapshot revert data before-upgrade"},
		{name: "snapshot-revert-what", args: "volume snapshot revert data"},
		{name: "snapshot-revert-both", args: "volume snapshot revert data before-upgrade --abandon"},
		{name: "snapshot-revert-attached", args: "volume snapshot revert data before-upgrade -y", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("revert volume data: %w on node a1: unmount and detach it there first, its consumer would not see that it changes", volume.ErrAttached)
		}},
		{name: "snapshot-inspect", args: "volume snapshot inspect before-upgrade"},
		{name: "snapshot-inspect-json", args: "volume snapshot inspect before-upgrade -o json"},
		{name: "snapshot-inspect-none", args: "volume snapshot inspect s", fake: func(f *fakeDaemon) { f.err = fmt.Errorf("%w: s", volume.ErrSnapshotNotFound) }},
		{name: "snapshot-blocks", args: "volume snapshot blocks before-upgrade --base older"},
		{name: "snapshot-blocks-json", args: "volume snapshot blocks before-upgrade -o json"},
		{name: "snapshot-delete", args: "volume snapshot delete before-upgrade -y"},
		{name: "snapshot-create-group", args: "volume snapshot create-group nightly --group db"},
		{name: "snapshot-create-group-of-nothing", args: "volume snapshot create-group nightly"},
		{name: "snapshot-create-group-not-cut", args: "volume snapshot create-group nightly --volumes data,log", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: group snapshot nightly: node a2: volume log was not held to the end", volume.ErrNotCut)
		}},
		{name: "snapshot-list-groups", args: "volume snapshot list-groups"},
		{name: "snapshot-inspect-group", args: "volume snapshot inspect-group nightly"},
		{name: "snapshot-delete-group", args: "volume snapshot delete-group nightly -y"},
		{name: "snapshot-delete-of-group", args: "volume snapshot delete nightly.log -y", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: snapshot nightly.log of volume log, group snapshot 5b000000-0000-4000-8000-000000000001", volume.ErrInGroupSnapshot)
		}},
		{name: "snapshot-restore", args: "volume snapshot restore before-upgrade old"},
		{name: "volume-clone", args: "volume clone data copy"},
		{name: "volume-list", args: "volume list"},
		{name: "volume-list-json", args: "volume list --node a1 -l app=db -o json"},
		{name: "volume-list-empty", args: "volume list", fake: func(f *fakeDaemon) { f.volumes = nil }},
		{name: "volume-list-kvdb", args: "volume list", fake: func(f *fakeDaemon) { f.err = kvdb.ErrNoLeader }},
		{name: "volume-list-bug", args: "volume list", fake: func(f *fakeDaemon) { f.err = errors.New("nil map") }},
		{name: "volume-inspect", args: "volume inspect data"},
		{name: "volume-inspect-remote", args: "volume inspect data", fake: func(f *fakeDaemon) { f.volumes[0].Volumes[0].Replicas[1].Node = "a2" }},
		{name: "volume-inspect-degraded", args: "volume inspect ledger"},
		{name: "volume-inspect-damaged", args: "volume inspect data", fake: func(f *fakeDaemon) { f.volumes[0].Volumes[0] = verifying() }},
		{name: "volume-verify-start", args: "volume verify start data"},
		{name: "volume-verify-start-rate", args: "volume verify start data --rate fast"},
		{name: "volume-verify-status", args: "volume verify status data"},
		{name: "volume-verify-status-json", args: "volume verify status data -o json"},
		{name: "volume-verify-status-none", args: "volume verify status " + idData},
		{name: "volume-verify-status-elsewhere", args: "volume verify status data", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: node b1 does not have volume data attached; ask node a1 (domain primary, 10.0.0.1:9701)", volume.ErrOtherNode)
		}},
		{name: "volume-verify-stop", args: "volume verify stop data"},
		{name: "volume-inspect-json", args: "volume inspect ledger -o json"},
		{name: "volume-inspect-unknown", args: "volume inspect nothing"},
		{name: "volume-inspect-unknown-json", args: "volume inspect nothing -o json"},
		{name: "volume-inspect-exposed", args: "volume inspect data", fake: func(f *fakeDaemon) { f.exposure = exposed() }},
		{name: "volume-exposure", args: "volume exposure data", fake: func(f *fakeDaemon) { f.exposure = exposed() }},
		{name: "volume-exposure-json", args: "volume exposure data -o json", fake: func(f *fakeDaemon) {
			f.exposure = exposed()
			f.exposure.Past = nil
		}},
		{name: "volume-exposure-none", args: "volume exposure data"},
		{name: "volume-delete", args: "volume delete data --force"},
		{name: "volume-delete-wait-json", args: "volume delete data -f --wait -o json"},
		{name: "volume-delete-nobody-to-ask", args: "volume delete data"},
		{name: "volume-delete-changed", args: "volume delete data -y --expect-epoch 4 --reason old", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("delete volume data: %w: epoch 4 is expected, it is at 5: look and decide again", volume.ErrConflict)
		}},
		{name: "volume-delete-no", args: "volume delete data", set: func(h *harness) { h.stdinTTY, h.stdin = true, strings.NewReader("n\n") }},
		{name: "volume-delete-eof", args: "volume delete data", set: func(h *harness) { h.stdinTTY = true }},
		{name: "volume-delete-yes", args: "volume delete data --wait", set: func(h *harness) { h.stdinTTY, h.stdin = true, strings.NewReader("Y\n") }},
		{name: "replica-force", args: "volume replica force data b1 --yes"},
		{name: "replica-force-group", args: "volume replica force data b1 --yes", fake: func(f *fakeDaemon) { f.group = "db" }},
		{name: "replica-force-group-no", args: "volume replica force data b1", fake: func(f *fakeDaemon) { f.volumes[0].Volumes[0].Group = "db" }, set: func(h *harness) {
			h.stdinTTY, h.stdin = true, strings.NewReader("n\n")
		}},
		{name: "replica-force-nobody-to-ask", args: "volume replica force data b1"},
		{name: "replica-force-no-replica", args: "volume replica force data"},
		{name: "replica-force-refused", args: "volume replica force data b1 -y", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("volume data: %w: node a1 (domain primary, ACTIVE) has every acknowledged write: bring it back and attach the volume", volume.ErrNotForced)
		}},
		{name: "replica-replace", args: "volume replica replace data b1 --force"},
		{name: "replica-replace-wait", args: "volume replica replace data b1 --force --wait"},
		{name: "replica-replace-nobody-to-ask", args: "volume replica replace data b1"},
		{name: "replica-replace-no-replica", args: "volume replica replace data"},
		{name: "replica-replace-in-sync", args: "volume replica replace data b1 -f", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: 1 on node b1", volume.ErrReplicaInSync)
		}},
		{name: "doctor", args: "doctor"},
		{name: "doctor-json", args: "doctor -o json"},
		{name: "doctor-bad", args: "doctor", fake: func(f *fakeDaemon) {
			c := f.examined.Checks[0]
			c.Value, c.Verdict, c.Advice = "14.00 ms (p50 9.00 ms)", doctorpb.Verdict_VERDICT_BAD, "every write waits for a round trip: use a shorter or less loaded path"
			f.examined.Verdict = doctorpb.Verdict_VERDICT_BAD
		}},
		{name: "audit-list", args: "audit list"},
		{name: "audit-list-json", args: "audit list --since 2023-11-14T00:00:00Z --limit 2 -o json"},
		{name: "audit-list-since", args: "audit list --since yesterday"},
		{name: "audit-list-incomplete", args: "audit list --since 1h", fake: func(f *fakeDaemon) {
			f.trail = &auditpb.ListAuditResponse{Unreadable: 1, Omitted: 3}
		}},
		{name: "audit-verify", args: "audit verify"},
		{name: "audit-verify-empty", args: "audit verify", fake: func(f *fakeDaemon) { f.verdict = &auditpb.VerifyAuditResponse{Intact: true, FirstSeq: 1} }},
		{name: "audit-verify-changed", args: "audit verify", fake: func(f *fakeDaemon) {
			f.verdict.Intact, f.verdict.Broken = false, 1
			f.verdict.Faults = []*auditpb.Fault{{Text: "cannot be read: audit: unreadable record"}, {Seq: 8, Text: "has been changed: its content does not have its hash"}}
		}},
		{name: "kvdb-members", args: "kvdb members"},
		{name: "kvdb-remove", args: "kvdb remove w1 --force"},
		{name: "kvdb-remove-nobody-to-ask", args: "kvdb remove w1"},
		{name: "kvdb-remove-majority", args: "kvdb remove w1 -f", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: of the 2 that remain b3 do not answer", clusterdomain.ErrKvdbMajority)
		}},
		{name: "kvdb-import-dry-run", args: "kvdb import --all --dry-run"},
		{name: "kvdb-import", args: "kvdb import --volume data --volume logs --accept-data-loss data --force"},
		{name: "kvdb-import-json", args: "kvdb import --all --force -o json"},
		{name: "kvdb-import-nobody-to-ask", args: "kvdb import --all"},
		{name: "kvdb-import-loss-no", args: "kvdb import --volume data --accept-data-loss data", set: func(h *harness) {
			h.stdinTTY, h.stdin = true, strings.NewReader("n\n")
		}},
		{name: "kvdb-import-what", args: "kvdb import --dry-run"},
		{name: "kvdb-import-both", args: "kvdb import --all --volume data"},
		{name: "kvdb-import-refused", args: "kvdb import --all --force", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: nothing was written, import the others with --volume: volume data (%s): replica r on node b1 does not answer", volume.ErrNotImported, idData)
		}},
		{name: "host-attach-rolled-back", args: "host attach data", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("attach volume data: %w: the replica on node a1 knows epoch 9, the kvdb only 7", replication.ErrRolledBack)
		}},
		{name: "host-attach", args: "host attach data --frontend fuseloop"},
		{name: "host-attach-json", args: "host attach data -o json"},
		{name: "host-attach-elsewhere", args: "host attach data", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: volume data on node b1", replication.ErrBusy)
		}},
		{name: "host-attach-frontend", args: "host attach data --frontend iscsi"},
		{name: "host-detach", args: "host detach data"},
		{name: "host-detach-in-use", args: "host detach data", fake: func(f *fakeDaemon) { f.err = fmt.Errorf("volume data: %w", frontend.ErrBusy) }},
		{name: "host-ready", args: "host ready"},
		{name: "host-ready-all-json", args: "host ready daemon devices -o json"},
		{name: "host-ready-unknown", args: "host ready kvdb"},
		{name: "host-ready-relative", args: "host ready devices --device-socket device.sock"},
		{name: "host-ready-no-devices", args: "host ready devices", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("%w: nobody listens", kvdb.ErrUnavailable)
		}},
		{name: "host-unpublish", args: "host unpublish data --node a1"},
		{name: "host-unpublish-no-node", args: "host unpublish data"},
		{name: "host-unpublish-attached", args: "host unpublish data --node a1", fake: func(f *fakeDaemon) {
			f.err = fmt.Errorf("unpublish volume data: %w on node a1, which answers: unmount and detach it there first", volume.ErrAttached)
		}},
		{name: "host-mount", args: "host mount data --path /mnt/data --fs xfs --options noatime"},
		{name: "host-mount-json", args: "host mount data --path /mnt/data/ -o json"},
		{name: "host-mount-again", args: "host mount data --path /mnt/data", set: loop0At("/mnt/data")},
		{name: "host-mount-occupied", args: "host mount data --path /mnt/data", set: func(h *harness) { h.mountTab = []mountEntry{{"/dev/sdb", "/mnt/data"}} }},
		{name: "host-mount-fails", args: "host mount data --path /mnt/data", set: func(h *harness) { h.execErr = errors.New("exit status 32") }},
		{name: "host-mount-relative", args: "host mount data --path data"},
		{name: "host-mount-no-path", args: "host mount data"},
		{name: "host-mount-detached", args: "host mount data --path /mnt/data", fake: func(f *fakeDaemon) {
			f.volumes = []*volumepb.ListVolumesResponse{{Volumes: []*volumepb.Volume{detached()}}}
		}},
		{name: "host-mount-elsewhere", args: "host mount ledger --path /mnt/data"},
		{name: "host-mount-nbd", args: "host mount ledger --path /mnt/data", fake: func(f *fakeDaemon) { f.status.ThisNode = "b1" }},
		{name: "host-mount-no-device", args: "host mount data --path /mnt/data", set: func(h *harness) {
			h.isBlockDevice = func(path string) error { return fmt.Errorf("%s is no block device", path) }
		}},
		{name: "host-mount-remote", args: "host mount data --path /mnt/data --endpoint 127.0.0.1:9700"},
		{name: "host-unmount", args: "host unmount data --path /mnt/data", set: loop0At("/mnt/data")},
		{name: "host-unmount-json", args: "host unmount data --path /mnt/data -o json", set: loop0At("/mnt/data")},
		{name: "host-unmount-nothing", args: "host unmount data --path /mnt/data"},
		{name: "host-unmount-other", args: "host unmount data --path /", set: loop0At("/mnt/data")},
		{name: "host-unmount-detached", args: "host unmount data --path /mnt/data", set: loop0At("/mnt/data"), fake: func(f *fakeDaemon) {
			f.volumes = []*volumepb.ListVolumesResponse{{Volumes: []*volumepb.Volume{detached()}}}
		}},
		{name: "host-unmount-busy", args: "host unmount data --path /mnt/data", set: func(h *harness) { loop0At("/mnt/data")(h); h.execErr = errors.New("exit status 32") }},
		{name: "bad-output", args: "status -o yaml"},
		{name: "bad-flag", args: "status --verbose"},
		{name: "bad-command", args: "volum list"},
		{name: "bad-verb", args: "volume creat x"},
		{name: "bad-timeout", args: "status --timeout -1s"},
		{name: "bad-endpoint", args: "status --endpoint tandemd.sock"},
		{name: "bad-endpoint-relative", args: "status --endpoint unix:tandemd.sock"},
		{name: "bad-endpoint-open", args: "status --endpoint 10.0.0.1:9700"},
		{name: "bad-tls-half", args: "status --endpoint 10.0.0.1:9700 --tls-ca /nowhere/ca.pem"},
		{name: "bad-tls-file", args: "status --endpoint 10.0.0.1:9700 --tls-ca /nowhere/ca.pem --tls-cert c --tls-key k"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := fixture()
			if tc.fake != nil {
				tc.fake(f)
			}
			h := newHarness(t, f)
			if tc.set != nil {
				tc.set(h)
			}
			golden(t, filepath.Join("testdata", tc.name+".golden"), h.transcript(t, strings.Fields(tc.args)...))
		})
	}
}

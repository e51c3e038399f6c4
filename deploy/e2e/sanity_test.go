package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// marker is what is given to the driver as a secret.
const marker = "s3cr3t-that-nobody-may-see"

// sanityReport is what is read of csi-sanity's report.
type sanityReport []struct {
	SpecReports []struct {
		ContainerHierarchyTexts []string
		LeafNodeType            string
		LeafNodeText, State     string
		Failure                 struct{ Message string }
	}
}

// tellSecrets makes every call whose request has room for secrets, csi-sanity's and others, of a volume that is not there, and returns how many those are.
func tellSecrets(t *testing.T, socket string) (calls int) {
	t.Helper()
	cc, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	for i := range spec.File_csi_proto.Services().Len() {
		service := spec.File_csi_proto.Services().Get(i)
		for k := range service.Methods().Len() {
			m := service.Methods().Get(k)
			secrets := m.Input().Fields().ByName("secrets")
			in, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
			if err != nil {
				t.Fatal(err)
			}
			out, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
			if err != nil {
				t.Fatal(err)
			}
			if secrets == nil || m.IsStreamingServer() {
				continue
			}
			req := in.New()
			req.Mutable(secrets).Map().Set(protoreflect.ValueOfString(marker).MapKey(), protoreflect.ValueOfString(marker))
			if f := m.Input().Fields().ByName("volume_id"); f != nil {
				req.Set(f, protoreflect.ValueOfString("00000009-0000-4000-8000-000000000007"))
			}
			err = cc.Invoke(t.Context(), "/"+string(service.FullName())+"/"+string(m.Name()), req.Interface(), out.New().Interface())
			if err != nil && strings.Contains(err.Error(), marker) {
				t.Errorf("%s answers with a secret: %v", m.Name(), err)
			}
			if !strings.Contains(fmt.Sprint(err), "unknown service") { // which no driver is asked
				calls++
			}
		}
	}
	return calls
}

// withoutSecrets fails the test if a daemon's log has the marker; at least least lines have to tell of calls.
func (c *cluster) withoutSecrets(t *testing.T, least int, nodes ...string) {
	t.Helper()
	calls := 0
	for _, n := range nodes {
		data, err := os.ReadFile(c.Node(n).Log)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, marker) {
				t.Errorf("%s logs a secret: %.400s", n, line)
			}
			if strings.Contains(line, `"msg":"csi call`) {
				calls++
			}
		}
	}
	if calls < least {
		t.Errorf("the logs tell of %d calls, the test has made %d at least: it looks in the wrong place", calls, least)
	}
}

// serveCSITalkatively is serveCSI with all that a daemon can log.
func serveCSITalkatively(sockets map[string]string) func(*lab.Spec) {
	return func(s *lab.Spec) {
		serveCSI(sockets)(s)
		csi := s.Adjust
		s.Adjust = func(node string, cfg map[string]any) {
			csi(node, cfg)
			cfg["log"] = map[string]any{"level": "debug"}
		}
	}
}

// TestSecrets: no secret of any call is in a log of a daemon, or in an answer.
func TestSecrets(t *testing.T) {
	sockets := map[string]string{}
	c := own(t, serveCSITalkatively(sockets))
	n := tellSecrets(t, sockets["a1"])
	if n < 12 {
		t.Errorf("only %d requests have room for secrets", n)
	}
	c.withoutSecrets(t, n, "a1")
}

// TestSanity has csi-sanity, the specification's own tests, talk to the controller of one domain and to a node of the other, each call ten times over,
// with secrets that no log may have afterwards. A test may be skipped only for a reason that docs/testing.md gives.
func TestSanity(t *testing.T) {
	needDisks(t, "mkfs.xfs")
	need(t, "xfs_growfs")
	sockets := map[string]string{}
	c := own(t, serveCSITalkatively(sockets), func(u *lab.Undo, c *cluster) { disks(t, u, c, "mkfs.xfs", "-q", "-K") })
	file := func(name, text string) string {
		path := filepath.Join(c.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var secrets strings.Builder
	for _, call := range []string{
		"CreateVolume", "DeleteVolume", "ControllerPublishVolume", "ControllerUnpublishVolume", "ControllerValidateVolumeCapabilities", "NodeStageVolume", "NodePublishVolume",
		"CreateSnapshot", "DeleteSnapshot", "ControllerExpandVolume", "ControllerModifyVolume", "ListSnapshots", "GetSnapshot",
	} {
		fmt.Fprintf(&secrets, "%sSecret: {%s-key: %s}\n", call, marker, marker)
	}
	program, report := filepath.Join(c.dir, "csi-sanity"), filepath.Join(c.dir, "sanity.json")
	if err := goBuild(t.Context(), program, "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	out, err := lab.Run(ctx, program, "--csi.endpoint", "unix://"+sockets["a1"], "--csi.controllerendpoint", "unix://"+sockets["b1"],
		"--csi.mountdir", filepath.Join(c.dir, "target"), "--csi.stagingdir", filepath.Join(c.dir, "staging"), "--csi.secrets", file("secrets.yaml", secrets.String()),
		"--csi.testvolumesize", fmt.Sprint(320<<20), "--csi.testvolumeexpandsize", fmt.Sprint(400<<20),
		"--csi.testvolumemutableparameters", file("mutable.yaml", "protection: max-protection\n"),
		"--ginkgo.no-color", "--ginkgo.succinct", "--ginkgo.json-report", report)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var suites sanityReport
	if err := json.Unmarshal(data, &suites); err != nil || len(suites) != 1 {
		t.Fatalf("%d suites in the report, %v", len(suites), err)
	}
	reasons, err := os.ReadFile(filepath.Join(top(), "docs", "testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	passed, skipped := 0, 0
	for _, s := range suites[0].SpecReports {
		name := strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
		if s.State == "pending" {
			s.State, s.Failure.Message = "skipped", "pending"
		}
		switch {
		case s.LeafNodeType != "It":
		case s.State == "passed":
			passed++
		case s.State != "skipped":
			t.Errorf("%s: %s: %s", s.State, name, s.Failure.Message)
		case !strings.Contains(string(reasons), "| `"+s.Failure.Message+"` |"):
			t.Errorf("skipped, and docs/testing.md does not say why that may be: %s: %s", name, s.Failure.Message)
		default:
			skipped++
		}
	}
	t.Logf("%d passed, %d skipped", passed, skipped)
	if passed < 93 {
		t.Errorf("%d passed, there were 93 once", passed)
	}
	o := orchestrate(t, sockets["a1"], filepath.Join(c.dir, "stage"))
	c.withoutSecrets(t, 500, "a1", "b1")
	vols, err := o.ListVolumes(t.Context(), &spec.ListVolumesRequest{})
	if err != nil || len(vols.GetEntries()) > 0 {
		t.Errorf("volumes are left over: %v, %v", vols, err)
	}
	snaps, err := o.ListSnapshots(t.Context(), &spec.ListSnapshotsRequest{})
	if err != nil || len(snaps.GetEntries()) > 0 {
		t.Errorf("snapshots are left over: %v, %v", snaps, err)
	}
}

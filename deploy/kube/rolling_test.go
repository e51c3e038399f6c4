//go:build kube

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// ring is how many blocks of a device a writer uses.
const ring = 8192

// writer is what a pod runs that writes all the time: numbered blocks, each synced before its number is said, with the seconds of the machine. The first error ends it, and the
// container with it. $1 is where to: a directory or a device.
const writer = `
n=0
while :; do
	echo "block $n of $1" > /tmp/block
	if test -b "$1"; then
		dd if=/tmp/block of="$1" bs=4096 seek=$((n % 8192)) conv=sync,fsync 2>/tmp/error || { cat /tmp/error; exit 1; }
	else
		dd if=/tmp/block of="$1/f" bs=4096 seek=$n conv=sync,notrunc,fsync 2>/tmp/error || { cat /tmp/error; exit 1; }
	fi
	read up rest < /proc/uptime
	echo "$n $up"
	n=$((n + 1))
done`

// load starts a pod on a node that writes to its claim, and is never to be started again.
func (s *stand) load(claim string, on *Node, block bool) {
	s.t.Helper()
	use := `"volumeMounts":[{"name":"v","mountPath":"/data"},{"name":"tmp","mountPath":"/tmp"}]`
	if block {
		use = `"volumeDevices":[{"name":"v","devicePath":"/data"}],"volumeMounts":[{"name":"tmp","mountPath":"/tmp"}]`
	}
	command, err := json.Marshal([]string{"sh", "-c", writer, "writer", "/data"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.must(fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%[1]q},"spec":{"terminationGracePeriodSeconds":0,"restartPolicy":"Never","nodeSelector":{"kubernetes.io/hostname":%[2]q},
		"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":%[1]q}},{"name":"tmp","emptyDir":{}}],
		"containers":[{"name":"c","image":%[3]q,"imagePullPolicy":"Never","command":%[4]s,%[5]s}]}}`, claim, on.Name, ShellImage, command, use), "apply", "-f", "-")
	s.must("", "wait", "--for=condition=Ready", "pod", claim, "--timeout=120s")
}

// confirmed is how many blocks a writer has said to be written, all in order, and the longest time between two of them.
func (s *stand) confirmed(pod string) (n int, pause time.Duration) {
	s.t.Helper()
	last := 0.0
	for line := range strings.Lines(s.must("", "logs", pod)) {
		number, at, _ := strings.Cut(strings.TrimSpace(line), " ")
		up, err := strconv.ParseFloat(at, 64)
		if number != strconv.Itoa(n) || err != nil {
			s.t.Fatalf("pod %s, which had written %d blocks, says %q", pod, n, line)
		}
		if n > 0 {
			pause = max(pause, time.Duration((up-last)*float64(time.Second)))
		}
		n, last = n+1, up
	}
	return n, pause
}

// goesOn wants writers to confirm more than they have by now.
func (s *stand) goesOn(pods ...string) {
	s.t.Helper()
	for _, p := range pods {
		before, _ := s.confirmed(p)
		err := lab.Until(s.t.Context(), p+" writes", time.Minute, 500*time.Millisecond, func() (bool, error) {
			n, _ := s.confirmed(p)
			return n > before+5, nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// tandemd is the pod of a node's daemon: its name, its UID and how often its container was started again; "" while there is none.
func (s *stand) tandemd(n *Node) (name, uid, restarts string) {
	s.t.Helper()
	out := s.must("", "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/component=node", "--field-selector", "spec.nodeName="+n.Name,
		"-o", "jsonpath={.items[0].metadata.name} {.items[0].metadata.uid} {.items[0].status.containerStatuses[0].restartCount}")
	f := append(strings.Fields(out), "", "", "")
	return f[0], f[1], f[2]
}

// isReady waits until all pods of tandemd are Ready, that of n as another one than uid, or started again more often than restarts.
func (s *stand) isReady(n *Node, uid, restarts string) {
	s.t.Helper()
	err := lab.Until(s.t.Context(), "tandemd of "+n.Name+" is another one and Ready", 2*time.Minute, 500*time.Millisecond, func() (bool, error) {
		out, err := s.c.Kubectl(s.t.Context(), "", "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/component=node", "--field-selector", "spec.nodeName="+n.Name,
			"-o", `jsonpath={.items[0].metadata.uid} {.items[0].status.containerStatuses[0].restartCount} {.items[0].status.conditions[?(@.type=="Ready")].status}`)
		f := strings.Fields(out)
		return err == nil && len(f) == 3 && (f[0] != uid || f[1] != restarts) && f[2] == "True", err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.ready()
}

// rolled waits until all pods of tandemd are of the newest revision and Ready.
func (s *stand) rolled() {
	s.t.Helper()
	err := lab.Until(s.t.Context(), "the update is through", 6*time.Minute, time.Second, func() (bool, error) {
		out, err := s.c.Kubectl(s.t.Context(), "", "-n", namespace, "get", "daemonsets", "-l", "app.kubernetes.io/component=node",
			"-o", `jsonpath={range .items[*]}{.metadata.generation} {.status.observedGeneration} {.status.desiredNumberScheduled} {.status.updatedNumberScheduled} {.status.numberReady}{"\n"}{end}`)
		through := err == nil
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			through = through && len(f) == 5 && f[0] == f[1] && f[2] == f[3] && f[2] == f[4]
		}
		return through, errors.Join(err, errors.New(out))
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.ready()
}

// watcher looks all the time what an update does.
type watcher struct {
	stop   context.CancelFunc
	done   sync.WaitGroup
	fewest int            // in-sync copies that any volume had
	away   map[string]int // nodes without a daemon that is Ready, by how often they were seen so together
	looks  int
}

// watch begins to look at the volumes as the witness knows them, and at the pods of tandemd.
func (s *stand) watch() *watcher {
	ctx, stop := context.WithCancel(s.t.Context())
	w := &watcher{stop: stop, fewest: 9, away: map[string]int{}}
	w.done.Go(func() {
		for ctx.Err() == nil {
			out, err := s.c.Kubectl(ctx, "", "-n", namespace, "exec", "ds/tandem-"+third, "-c", "tandemd", "--", "tandemctl", "--timeout=5s", "volume", "list", "-o", "json")
			var list struct {
				Volumes []struct {
					Replicas []struct {
						InSync bool `json:"in_sync"`
					} `json:"replicas"`
				} `json:"volumes"`
			}
			if err == nil && json.Unmarshal([]byte(out), &list) == nil {
				for _, v := range list.Volumes {
					n := 0
					for _, r := range v.Replicas {
						if r.InSync {
							n++
						}
					}
					w.fewest = min(w.fewest, n)
					w.looks++
				}
			}
			out, err = s.c.Kubectl(ctx, "", "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/component=node",
				"-o", `jsonpath={range .items[*]}{.spec.nodeName} {.metadata.deletionTimestamp} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
			if err != nil {
				continue
			}
			there := map[string]bool{}
			for line := range strings.Lines(out) {
				f := strings.Fields(line)
				there[f[0]] = len(f) == 2 && f[1] == "True"
			}
			var away []string
			for n := range s.domains {
				if !there[n.Name] {
					away = append(away, n.Name)
				}
			}
			if away != nil {
				slices.Sort(away)
				w.away[strings.Join(away, " ")]++
			}
		}
	})
	return w
}

func (w *watcher) end() {
	w.stop()
	w.done.Wait()
}

// deviceLoops are the loop devices of this machine that device processes of the chart keep.
func deviceLoops(t *testing.T) (found []string) {
	t.Helper()
	for _, l := range loops(t) {
		if strings.Contains(l, "/run/tandem/device/") {
			found = append(found, l)
		}
	}
	return found
}

// TestRolling kills, ends and updates the daemons under pods that write to a file system and to a raw device, at both sites. The pods see pauses and nothing else: no error, no restart, and
// everything that was confirmed is there. An update of the chart goes from node to node, and no volume is without an in-sync copy at any time. What is published anew on a
// node after a restart of its daemon works, and at the end nothing is left.
func TestRolling(t *testing.T) {
	top, bin := programs(t)
	dir, undo := workDir(t)
	tandem, err := TandemImage(t.Context(), top, bin, filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	second := tandem
	second.Name = strings.TrimSuffix(tandem.Name, ":1") + ":2"
	lap := laps(t)
	w, err := NewWorld(t.Context(), bin, dir, undo, append(SidecarImages(bin), tandem, second)...)
	if err != nil {
		t.Fatal(err)
	}
	c := cluster(t, w, "metro", "site-w", "site-a", "site-b")
	witness := c.Node("site-w")
	s := &stand{t: t, c: c, a: c.Node("site-a"), b: c.Node("site-b")}
	s.domains = map[*Node]string{s.a: "north", s.b: "south", witness: third}
	t.Cleanup(s.tell)
	s.install(top, makeAuthority(t, bin, dir), s.a, s.b, witness)
	s.ready()
	lap("installed")

	writers := []string{"files", "raw"}
	s.claim("files", "Filesystem")
	s.load("files", s.a, false)
	s.claim("raw", "Block")
	s.load("raw", s.b, true)
	s.claim("idle", "Filesystem")
	s.pod("idle", s.a, false)
	s.sh("idle", "echo kept > /data/f && sync")
	s.goesOn(writers...)
	if found := deviceLoops(t); len(found) != 3 {
		t.Errorf("three volumes are attached by device processes, on %v", found)
	}
	lap("pods write")

	longest := map[string]time.Duration{}
	pauses := func(what string) {
		t.Helper()
		for _, p := range writers {
			n, pause := s.confirmed(p)
			t.Logf("%s: %s has written %d blocks, the longest pause until now was %v", what, p, n, pause)
			longest[p] = pause
		}
	}
	pauses("nothing happened yet")

	for _, n := range []*Node{s.a, s.b} { // the daemon dies
		s.insync()
		_, uid, restarts := s.tandemd(n)
		kill(t, n)
		s.isReady(n, uid, restarts)
		s.goesOn(writers...)
		pauses("killed on " + n.Name)
	}
	lap("daemons killed")
	for _, n := range []*Node{s.b, s.a} { // its pod is deleted
		s.insync()
		name, uid, restarts := s.tandemd(n)
		s.must("", "-n", namespace, "delete", "pod", name)
		s.isReady(n, uid, restarts)
		s.goesOn(writers...)
		pauses("pod deleted on " + n.Name)
	}
	lap("pods of the daemons deleted")

	// A pod comes back to the node where the daemon is another one by now.
	s.must("", "delete", "pod", "idle")
	s.pod("idle", s.a, false)
	if got := s.sh("idle", "cat /data/f"); got != "kept" {
		t.Errorf("a pod that came back finds %q", got)
	}
	lap("pod started again on the node")

	// An update, of all daemons at both sites.
	s.insync()
	before := map[string]string{}
	for n := range s.domains {
		_, before[n.Name], _ = s.tandemd(n)
	}
	look := s.watch()
	defer look.end()
	start := time.Now()
	if _, err := c.Helm(t.Context(), "", "upgrade", "tandem", filepath.Join(top, "deploy", "helm", "tandem"), "-n", namespace, "--reuse-values",
		"--set", "kvdb.raft.bootstrap=false", "--set", "image.tag=2"); err != nil {
		t.Fatal(err)
	}
	s.rolled()
	took := time.Since(start).Round(100 * time.Millisecond)
	look.end()
	s.goesOn(writers...)
	pauses("updated")
	t.Logf("the update of %d nodes took %v; of %d looks at volumes the fewest in-sync copies were %d; away: %v", len(s.domains), took, look.looks, look.fewest, look.away)
	if look.looks == 0 || look.fewest < 1 {
		t.Errorf("a volume had %d in-sync copies during the update", look.fewest)
	}
	for nodes := range maps.Keys(look.away) {
		if strings.Contains(nodes, " ") {
			t.Errorf("nodes were away together: %s", nodes)
		}
	}
	for n := range s.domains {
		if _, uid, _ := s.tandemd(n); uid == before[n.Name] {
			t.Errorf("the pod of %s is the one of before the update", n.Name)
		}
	}
	lap("updated")

	for _, p := range append(writers, "idle") {
		if out := s.must("", "get", "pod", p, "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount}"); out != "Running 0" {
			t.Errorf("pod %s is %s", p, out)
		}
	}
	s.written(writers)
	lap("read again at the other site")

	s.must("", "delete", "pod", "files", "raw", "idle", "--ignore-not-found")
	s.must("", "delete", "pvc", "--all", "--wait=false")
	s.nothingLeft()
	if _, err := c.Helm(t.Context(), "", "uninstall", "tandem", "-n", namespace, "--wait", "--timeout", "2m"); err != nil {
		t.Fatal(err)
	}
	s.until("", "-n", namespace, "get", "pods", "-o", "name")
	for _, n := range []*Node{s.a, s.b} {
		if found := s.mounts(n); len(found) > 0 {
			t.Errorf("mounts are left on %s: %v", n.Name, found)
		}
		if out, err := n.Run(t.Context(), "cat", "/proc/mounts"); err != nil || strings.Contains(out, "fuse.tandem") {
			t.Errorf("FUSE mounts are left on %s: %v\n%s", n.Name, err, out)
		}
	}
	if found := loops(t); len(found) > 0 {
		t.Errorf("loop devices are left: %v", found)
	}
	lap("uninstalled, nothing left")
}

// kill ends the daemon of a node as a crash does.
func kill(t *testing.T, n *Node) {
	t.Helper()
	out, err := n.Run(t.Context(), "sh", "-c", `for p in /proc/[0-9]*; do test "$(tr '\0' ' ' < $p/cmdline | cut -d' ' -f1,2)" = "/usr/bin/tandemd --config=/etc/tandem/tandemd.yaml" && echo ${p#/proc/}; done; :`)
	pids := strings.Fields(out)
	if err != nil || len(pids) != 1 {
		t.Fatalf("processes of tandemd on %s: %v, %v", n.Name, pids, err)
	}
	if _, err := n.Run(t.Context(), "kill", "-KILL", pids[0]); err != nil {
		t.Fatal(err)
	}
}

// written ends the writers, starts pods of their claims at the other sites, and wants every block there that was confirmed.
func (s *stand) written(writers []string) {
	s.t.Helper()
	for _, p := range writers {
		n, _ := s.confirmed(p)
		s.must("", "delete", "pod", p)
		block, on, file := p == "raw", s.b, "/data/f"
		if block {
			on, file = s.a, "/data"
		}
		s.pod(p, on, block)
		here := n // of a device the blocks before were written over
		if block {
			here = min(n, ring)
		}
		lines := strings.Split(s.sh(p, fmt.Sprintf("dd if=%s bs=4096 count=%d 2>/dev/null | busybox tr -d '\\000'", file, here)), "\n")
		if len(lines) != here {
			s.t.Errorf("%s: %d blocks were confirmed, there are %d", p, n, len(lines))
			continue
		}
		for i, line := range lines {
			k := i
			if block {
				k = i + (n-1-i)/ring*ring // the last one there that was confirmed
			}
			if line != fmt.Sprintf("block %d of /data", k) && (!block || line != fmt.Sprintf("block %d of /data", k+ring)) { // that was not yet
				s.t.Errorf("%s: %d blocks were confirmed, and of block %d there is %q", p, n, k, line)
			}
		}
		if s.t.Failed() {
			continue
		}
		s.t.Logf("%s: %d blocks were confirmed, and are there", p, here)
	}
}

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication/wire"
)

// TestVersions (F24) brings the remote replica's node back with a daemon that speaks only a later version of the session protocol, as an upgrade
// over two releases does: the session is refused, which the logs of both ends tell at once, and the volume goes on with the other replica. With the
// right daemon the replica is resynced.
func TestVersions(t *testing.T) {
	c := shared(t)
	later := laterDaemon(t)
	v := c.create(t, "skewed", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	away := c.Node(v.away)
	restart := func(program string) {
		t.Helper()
		if err := away.Kill(); err != nil {
			t.Fatal(err)
		}
		away.Runs(program)
		if err := c.StartNode(away); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { away.Runs("") })

	home, there, at := c.mark(t, v.home), c.mark(t, v.away), time.Now()
	restart(later)
	next := wire.MaxVersion + 1
	for m, words := range map[mark]string{
		home:  fmt.Sprintf("this node speaks %d to %d", wire.MinVersion, wire.MaxVersion),
		there: fmt.Sprintf("one end speaks versions %d to %d, the other %d to %d; upgrade the older one", next, next, wire.MinVersion, wire.MaxVersion),
	} {
		until(t, fmt.Sprintf("%s says %q", filepath.Base(m.path), words), 20*time.Second, func() (bool, error) {
			for _, msg := range []string{"session ended", "session still not open", "session refused"} {
				for _, e := range m.since(t, msg) {
					if strings.Contains(e.raw, words) {
						return true, nil
					}
				}
			}
			return false, nil
		})
	}
	told := time.Since(at)
	c.inSync(t, v.home, v.name, 30*time.Second, v.home)
	w.more(t, 200, 20*time.Second)
	pause := w.pause(t, at)
	if pause > pauseBound {
		t.Errorf("writes paused for %v", pause)
	}
	t.Logf("writes paused for %v; told of after %v", pause.Round(time.Millisecond), told.Round(time.Millisecond))

	restart("")
	at = time.Now()
	c.inSync(t, v.home, v.name, 40*time.Second, sorted(v.home, v.away)...)
	t.Logf("in sync %v after the start of the right daemon", time.Since(at).Round(time.Millisecond))
	w.more(t, 100, 20*time.Second)
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// laterDaemon builds a tandemd that speaks only the version after those of this tree, and returns its path.
func laterDaemon(t *testing.T) string {
	t.Helper()
	file := filepath.Join(top(), "replication", "wire", "hello.go")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text, next := string(data), wire.MaxVersion+1
	for name, is := range map[string]wire.Version{"MinVersion": wire.MinVersion, "MaxVersion": wire.MaxVersion} {
		old := fmt.Sprintf("%s Version = %d\n", name, is)
		if n := strings.Count(text, old); n != 1 {
			t.Fatalf("%q is %d times in %s", old, n, file)
		}
		text = strings.Replace(text, old, fmt.Sprintf("%s Version = %d\n", name, next), 1)
	}
	dir := t.TempDir()
	changed, overlay, program := filepath.Join(dir, "hello.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "tandemd")
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{file: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{changed: text, overlay: string(list)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := goBuild(t.Context(), program, "-overlay", overlay, "./cmd/tandemd"); err != nil {
		t.Fatal(err)
	}
	return program
}

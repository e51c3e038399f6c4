//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	postgresImage = "registry.local/postgres:1"
	postgresUser  = 5432
)

// PostgresImage is the PostgreSQL of this Debian, which makes its database in $PGDATA when there is none; dir is made for its files.
func PostgresImage(ctx context.Context, dir string) (Image, error) {
	m := Image{Name: postgresImage, Files: map[string]string{}, Links: map[string]string{"/bin/sh": "busybox", "/bin/test": "busybox"}, Dirs: []string{"/tmp", "/data"}, Entrypoint: []string{"/start"}}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		return m, errors.Join(err, errors.New("kube: no PostgreSQL: deploy/hack/deps.sh kube"))
	}
	bin := found[len(found)-1]
	lib, share := filepath.Join(filepath.Dir(bin), "lib"), filepath.Join("/usr/share/postgresql", filepath.Base(filepath.Dir(bin)))
	for _, tree := range []string{lib, share, "/usr/share/zoneinfo"} {
		if err := m.AddTree(tree, tree); err != nil {
			return m, err
		}
	}
	if err := m.AddPrograms(ctx, "/bin/busybox", filepath.Join(bin, "postgres"), filepath.Join(bin, "initdb"), filepath.Join(bin, "psql")); err != nil {
		return m, err
	}
	for _, program := range []string{"psql", "initdb", "postgres"} {
		m.Links["/usr/bin/"+program] = filepath.Join(bin, program)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return m, err
	}
	for name, f := range map[string]struct {
		data string
		mode os.FileMode
	}{
		"/etc/passwd": {fmt.Sprintf("postgres:x:%d:%d::/data:/bin/sh\n", postgresUser, postgresUser), 0o644},
		"/start": {`#!/bin/sh
set -e
test -s "$PGDATA/PG_VERSION" || ` + bin + `/initdb --locale=C -A trust "$PGDATA"
exec ` + bin + `/postgres -k /tmp -c listen_addresses=
`, 0o755},
	} {
		file := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(file, []byte(f.data), f.mode); err != nil {
			return m, err
		}
		m.Files[name] = file
	}
	return m, nil
}

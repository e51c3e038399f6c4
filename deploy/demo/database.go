package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// database is an application that keeps tables in files, driven by SQL on the standard input of a client program.
type database interface {
	// start brings it up on the files below mnt: the first time where nothing is, later on what is there, also after a crash.
	start(ctx context.Context, mnt string, first bool) error
	// client returns a program that runs the statements that it reads and ends at the first error; it never connects twice.
	client() *exec.Cmd
	// print is a line for the client that prints text, as a line, once everything before it succeeded.
	print(text string) string
	// beside returns a program that writes to tables of its own beside the clients until it is killed, or nil. What it
	// prints about an error holds "aborted".
	beside() *exec.Cmd
	// sql runs statements and returns what they print, fields divided by '|'.
	sql(ctx context.Context, statements string) (string, error)
	// check lets it verify its own files and the tables of beside.
	check(ctx context.Context) error
	// kill ends it at once, as it ends when its site dies, with those clients of the load that run inside of it. Requests of
	// it may still wait in the kernel.
	kill(clients *load) error
	// buried waits until nothing of what was killed is left.
	buried(ctx context.Context) error
	// stop shuts it down in order.
	stop() error
}

// kind is what -app chooses.
type kind struct {
	missing func() error // what has to be installed first, nil if nothing
	make    func(work string) (database, error)
}

var databases = map[string]kind{
	"postgresql": {missingPostgres, newPostgres},
	"sqlite":     {missingSQLite, newSQLite},
}

const schema = `
CREATE TABLE confirmed (id bigint PRIMARY KEY, client int NOT NULL, payload text NOT NULL);
CREATE TABLE counters (client int PRIMARY KEY, n bigint NOT NULL);
CREATE INDEX confirmed_by_client ON confirmed (client, id);`

// transaction is one of a client, which prints after it when it was confirmed.
func transaction(db database, id int64, client int) string {
	return fmt.Sprintf(`BEGIN;
INSERT INTO confirmed VALUES (%d, %d, '%s');
INSERT INTO counters VALUES (%d, 1) ON CONFLICT (client) DO UPDATE SET n = counters.n + 1;
COMMIT;
%s
`, id, client, payload(id), client, db.print(confirmation(id)))
}

// confirmation is what a client prints when transaction id was confirmed.
func confirmation(id int64) string { return fmt.Sprintf("confirmed %d", id) }

// table returns what the database has: id and fingerprint of every row. Each client's counter must agree with its rows.
func table(ctx context.Context, db database) (map[int64]string, error) {
	torn, err := db.sql(ctx, `SELECT client, n, (SELECT count(*) FROM confirmed f WHERE f.client = c.client) FROM counters c
		WHERE n <> (SELECT count(*) FROM confirmed f WHERE f.client = c.client)`)
	if err != nil {
		return nil, err
	}
	if torn != "" {
		return nil, fmt.Errorf("a transaction is there by half: client|counter|rows %s", torn)
	}
	rows, err := db.sql(ctx, `SELECT id || ' ' || payload FROM confirmed`)
	if err != nil {
		return nil, err
	}
	there, err := readPairs(strings.NewReader(rows))
	for id, p := range there {
		there[id] = fingerprint(p)
	}
	return there, err
}

// checked turns what a database prints about itself into an error, unless it is what it prints when all is well.
func checked(ctx context.Context, db database, query, well string) error {
	out, err := db.sql(ctx, query)
	if err == nil && out != well+"\n" {
		err = fmt.Errorf("%s printed %.300q instead of %q", query, out, well)
	}
	return err
}

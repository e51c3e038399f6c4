package nemesis

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// python is Debian's: python3-libnbd is a module of that one.
const python = "/usr/bin/python3"

// places is how many blocks are written and read; half of the requests are for 16 of them.
const places = 2048

// depth is how many requests a consumer has in flight, beside reads for which others are not in the way.
const depth = 6

// What a consumer understands.
const (
	quiet  = syscall.SIGUSR1 // read only
	resume = syscall.SIGUSR2 // write again
)

// consumer is a process of testdata/consumer.py.
type consumer struct {
	proc   *lab.Process
	log    string
	parser parser
	told   *os.File
	rest   []byte // of told, an incomplete line
	acks   int    // writes that were answered with success
}

// consume starts a consumer of an attachment. Each writes versions of its own.
func (r *runner) consume(what string) (*consumer, error) {
	r.consumers++
	name := fmt.Sprintf("consumer-%d", r.consumers)
	file := filepath.Join(r.dir, "log", name+".history")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return nil, err
	}
	told, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	script, err := filepath.Abs("testdata/consumer.py")
	if err != nil {
		return nil, err
	}
	c := &consumer{told: told, log: filepath.Join(r.dir, "log", name+".log"), parser: parser{attachment: len(r.history.Attachments) - 1, open: map[string]*Request{}}}
	seed, version := r.seed^uint64(r.consumers), int64(r.consumers)<<24
	c.proc, err = lab.StartProcess(name, c.log, nil, python, script, what, r.uri, file,
		strconv.FormatUint(seed, 10), strconv.FormatInt(version, 10), strconv.Itoa(places), list(r.history.Left()))
	if err != nil {
		return nil, err
	}
	undo.Add(name, c.proc.Kill)
	return c, nil
}

// list is how a consumer takes numbers.
func list(numbers []int) string {
	words := make([]string, len(numbers))
	for i, n := range numbers {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}

// writing is how many of its writes were not answered yet.
func (c *consumer) writing() (n int) {
	for _, r := range c.parser.open {
		if r.Writes() {
			n++
		}
	}
	return n
}

// poll takes what the consumer told since the last time.
func (c *consumer) poll(h *History) error {
	buf := make([]byte, 1<<16)
	for {
		n, err := c.told.Read(buf)
		c.rest = append(c.rest, buf[:n]...)
		if n == 0 || err != nil {
			break // the end, so far
		}
	}
	for {
		line, rest, whole := bytes.Cut(c.rest, []byte{'\n'})
		if !whole {
			return nil
		}
		begun, answered, err := c.parser.line(string(line))
		if err != nil {
			return err
		}
		if begun != nil {
			h.Requests = append(h.Requests, begun)
		}
		if answered != nil && answered.OK && answered.Writes() {
			c.acks++
		}
		c.rest = rest
	}
}

// end ends it in order, all its requests answered.
func (c *consumer) end() error {
	if err := c.proc.Stop(syscall.SIGTERM, waitLimit); err != nil {
		return err
	}
	return c.ended()
}

// ended returns an error unless it ended by itself or as it was asked to, with a device that worked.
func (c *consumer) ended() error {
	<-c.proc.Done()
	if code := c.proc.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with code %d\n%s", c.proc.Name, code, lab.Tail(c.log, 3))
	}
	return nil
}

// now is the time that consumers tell.
func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // always there
	return ts.Nano()
}

// since is how long ago something was, in round figures.
func since(at time.Time) time.Duration { return time.Since(at).Round(100 * time.Millisecond) }

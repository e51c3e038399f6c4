package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/replication"
)

// attachments are records, in a directory that survives the process, of what front ends show whose clients come
// back by themselves: one file for each attachment, with its name for a name and the front end's kind in it.
//
// A record says that a consumer was told something under this attachment, and that the attachment has not ended. Whether it
// may go on is for the volume's configuration and its replicas to say: a record too many does no harm, one that is missing costs
// the consumer an error. It is made before the first consumer can connect, and removed before one is told that
// the attachment has ended.
type attachments struct{ dir string }

// attachment names one attachment of one volume.
type attachment struct {
	volume replication.VolumeID
	id     replication.AttachID
}

// String is what a front end shows it under. A consumer that comes back to the name after the attachment has ended finds
// nothing there, whatever was attached since: it may have been told of writes that are lost, or that others have
// overwritten (I23b, G2).
func (a attachment) String() string { return a.volume.String() + "." + a.id.String() }

func parseAttachment(s string) (attachment, error) {
	v, id, ok := strings.Cut(s, ".")
	if !ok {
		return attachment{}, errors.New("not of the form VOLUME.ATTACHMENT")
	}
	vol, err := replication.ParseUUID(v)
	if err != nil {
		return attachment{}, err
	}
	att, err := replication.ParseUUID(id)
	return attachment{replication.VolumeID(vol), replication.AttachID(att)}, err
}

func openAttachments(dir string) (*attachments, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for attachments: %w", err)
	}
	return &attachments{dir}, nil
}

// record is an attachment and the front end that shows it.
type record struct {
	attachment
	kind frontend.Kind
}

// comeBack are the front ends whose consumers come back by themselves.
var comeBack = []frontend.Kind{frontend.KindNBD, frontend.KindDevice}

// list returns the attachments that have a record. odd has what is there and is none, one error for each file.
func (s *attachments) list() (all []record, odd []error, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read the records of attachments: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasSuffix(e.Name(), tmpSuffix) { // of a process that was killed
			if err := os.Remove(path); err != nil {
				odd = append(odd, err)
			}
			continue
		}
		a, err := parseAttachment(e.Name())
		if err != nil {
			odd = append(odd, fmt.Errorf("%s: %w", path, err))
			continue
		}
		text, err := os.ReadFile(path)
		kind := frontend.Kind(strings.TrimSpace(string(text)))
		if err == nil && !slices.Contains(comeBack, kind) {
			err = fmt.Errorf("%s: front end %.32q is not one whose consumers come back", path, kind)
		}
		if err != nil {
			odd = append(odd, err)
			continue
		}
		all = append(all, record{a, kind})
	}
	return all, odd, nil
}

const tmpSuffix = ".tmp"

// put makes the record of a. Durable on nil; nothing is left on an error.
func (s *attachments) put(a record) (err error) {
	path := filepath.Join(s.dir, a.String())
	tmp := path + tmpSuffix
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make the record of an attachment: %w", err), remove(tmp))
		}
	}()
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(string(a.kind) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if err := s.sync(); err != nil {
		return errors.Join(err, remove(path))
	}
	return nil
}

// remove takes the record of a away; absent is nil. Durable on nil.
func (s *attachments) remove(a attachment) error {
	if err := errors.Join(remove(filepath.Join(s.dir, a.String())), s.sync()); err != nil {
		return fmt.Errorf("remove the record of an attachment: %w", err)
	}
	return nil
}

// sync makes what was put and removed durable.
func (s *attachments) sync() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

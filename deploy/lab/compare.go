package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// CompareReplicas compares the contents of all replicas of the volume, straight from their chunk files (see the package
// comment of datapath/backing for the layout), with no daemon running. It returns how many bytes it compared.
func (c *Cluster) CompareReplicas(v *VolumeView) (int64, error) {
	var heads []string
	for _, r := range v.Volume.Replicas {
		found, err := filepath.Glob(filepath.Join(c.Node(r.Node).Pool(), "replicas", plain(v.Volume.ID)+"."+plain(r.ID), "head"))
		if err != nil || len(found) != 1 {
			return 0, fmt.Errorf("replica %s on %s: no chunk files below %s", r.ID, r.Node, c.Node(r.Node).Dir)
		}
		heads = append(heads, found[0])
	}
	if len(heads) < 2 {
		return 0, errors.New("fewer than two replicas to compare")
	}
	var compared int64
	for _, other := range heads[1:] {
		n, err := compareHeads(heads[0], other)
		compared += n
		if err != nil {
			return compared, err
		}
	}
	if compared == 0 {
		return 0, errors.New("the replicas have no chunk files")
	}
	return compared, nil
}

// plain is a UUID as it stands in file names.
func plain(uuid string) string { return strings.ReplaceAll(uuid, "-", "") }

// compareHeads compares two directories of chunk files. A chunk that is not there reads as zeroes.
func compareHeads(a, b string) (int64, error) {
	names := map[string]bool{}
	for _, dir := range []string{a, b} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return 0, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && strings.Trim(e.Name(), "0123456789abcdef") == "" {
				names[e.Name()] = true
			}
		}
	}
	var compared int64
	for name := range names {
		n, err := compareFiles(filepath.Join(a, name), filepath.Join(b, name))
		compared += n
		if err != nil {
			return compared, err
		}
	}
	return compared, nil
}

// compareFiles compares two files byte by byte; what is beyond the end of one, or all of one that is not there, counts as zeroes.
func compareFiles(a, b string) (int64, error) {
	fa, err := openOrEmpty(a)
	if err != nil {
		return 0, err
	}
	defer fa.Close()
	fb, err := openOrEmpty(b)
	if err != nil {
		return 0, err
	}
	defer fb.Close()
	const block = 1 << 20
	bufA, bufB := make([]byte, block), make([]byte, block)
	for off := int64(0); ; off += block {
		na, errA := readOrZero(fa, bufA)
		nb, errB := readOrZero(fb, bufB)
		if err := errors.Join(errA, errB); err != nil {
			return off, err
		}
		if na == 0 && nb == 0 {
			return off, nil
		}
		if !bytes.Equal(bufA, bufB) {
			for i := range bufA {
				if bufA[i] != bufB[i] {
					return off, fmt.Errorf("the replicas differ: %s and %s at offset %d", a, b, off+int64(i))
				}
			}
		}
	}
}

// openOrEmpty opens a file for reading; one that is not there is empty.
func openOrEmpty(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return f, err
}

// readOrZero fills buf, with zeroes from the end of r on, and returns how much came from r.
func readOrZero(r io.Reader, buf []byte) (int, error) {
	n, err := io.ReadFull(r, buf)
	clear(buf[n:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}

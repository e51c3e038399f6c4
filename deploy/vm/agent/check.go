package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// readBlocks tells which version each place of a device holds.
func readBlocks(q order.Request) (order.Line, error) {
	f, size, err := openDevice(q.Path, os.O_RDONLY)
	if err != nil {
		return order.Line{}, err
	}
	defer f.Close()
	const at = 64 // places at a time
	buf := aligned(at * order.BlockSize)
	line := order.Line{Versions: make([]int64, order.Places)}
	for first := int64(0); first < order.Places; first += at {
		if _, err := f.ReadAt(buf, order.Offset(first, size)); err != nil {
			return order.Line{}, err
		}
		for i := range int64(at) {
			block := buf[i*order.BlockSize : (i+1)*order.BlockSize]
			v := order.Version(block, q.Seed, first+i)
			line.Versions[first+i] = v
			if v == order.Damaged && line.Out == "" {
				line.Out = fmt.Sprintf("place %d begins %x", first+i, block[:48])
			}
		}
	}
	return line, nil
}

// listFiles tells which version each file of a directory holds; one that is not there is zeroes.
func listFiles(q order.Request) (order.Line, error) {
	line := order.Line{Versions: make([]int64, order.FilesInUse)}
	for i := range line.Versions {
		data, err := os.ReadFile(filepath.Join(q.Path, fmt.Sprintf("f%02d", i)))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return order.Line{}, err
		case len(data) == 0:
			line.Versions[i] = order.Damaged
		default:
			if line.Versions[i] = order.Version(data, q.Seed, int64(i)); line.Versions[i] == 0 {
				line.Versions[i] = order.Damaged
			}
		}
	}
	return line, nil
}

// digest makes one sum of the data of each replica: of its chunk files, by name and offset, without blocks of zeroes, because
// what one replica has as zeroes another may have as a hole or not at all.
func digest(pool string) (order.Line, error) {
	heads, err := filepath.Glob(filepath.Join(pool, "replicas", "*", "head"))
	if err != nil {
		return order.Line{}, err
	}
	line := order.Line{Digests: map[string]string{}}
	for _, head := range heads {
		h := sha256.New()
		files, err := os.ReadDir(head) // sorted
		if err != nil {
			return order.Line{}, err
		}
		for _, e := range files {
			n, err := digestFile(h, filepath.Join(head, e.Name()))
			line.Bytes += n
			if err != nil {
				return order.Line{}, err
			}
		}
		line.Digests[filepath.Base(filepath.Dir(head))] = hex.EncodeToString(h.Sum(nil))
	}
	return line, nil
}

func digestFile(to io.Writer, path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf, zeroes := make([]byte, 64<<10), make([]byte, 64<<10)
	var summed int64
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := io.ReadFull(f, buf)
		if n == 0 && errors.Is(err, io.EOF) {
			return summed, nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return summed, err
		}
		clear(buf[n:])
		if bytes.Equal(buf, zeroes) {
			continue
		}
		summed += int64(len(buf))
		_, _ = io.WriteString(to, filepath.Base(path)) // a hash takes everything
		_ = binary.Write(to, binary.LittleEndian, off)
		_, _ = to.Write(buf)
	}
}

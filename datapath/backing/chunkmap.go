package backing

import (
	"fmt"
	"path/filepath"
	"sync"

	"github.com/tandem-storage/tandem/datapath/meta"
)

// chunkMapFile says which chunks have been made. Without it a chunk file that the
// file system lost (fsck) would pass for one that was never written, that is for
// zeroes. It has the format of a dirty map of one block a chunk, for the replica's
// own id as peer.
const chunkMapFile = "chunks"

func chunkMapSize(chunks int64) int64 { return chunks * meta.DirtyBlock }

// chunkMap is the open chunk map.
type chunkMap struct {
	sync.Mutex // held over its I/O
	pages      *meta.Pages
	file       *meta.DirtyFile
}

// createChunkMap makes the chunk map of a new replica, which has the chunks in made. Stable on nil.
func createChunkMap(dir string, k key, chunks int64, made *bitmap) error {
	size := chunkMapSize(chunks)
	f, err := meta.CreatePages(filepath.Join(dir, chunkMapFile), meta.DirtyPages(size))
	if err != nil {
		return err
	}
	defer f.Close()
	m := meta.NewDirtyMap(size)
	made.each(func(n int64) { m.Set(n*meta.DirtyBlock, meta.DirtyBlock) })
	_, err = meta.CreateDirty(f, k.replica, m)
	return err
}

// checkChunkMap opens the chunk map and compares it with the chunk files found. A
// file that is not in the map was made just before a crash and has no data yet; a
// page that is damaged is made anew from the files.
func (r *Replica) checkChunkMap() error {
	n := r.shape.Load().chunks
	pages, err := meta.OpenPages(filepath.Join(r.dir, chunkMapFile))
	if err != nil {
		return fmt.Errorf("%w: chunk map of %s: %w; replace the replica (tandemctl volume replica replace)", ErrIdentityMissing, r.dir, err)
	}
	cm := &r.chunkMap
	cm.pages = pages
	var damaged []int64
	cm.file, damaged = meta.LoadDirty(pages, r.k.replica, chunkMapSize(n))
	m := cm.file.Map()
	const page = meta.PageBits * meta.DirtyBlock
	for _, p := range damaged {
		m.Clear(p*page, page)
	}
	for i := range n {
		at := i * meta.DirtyBlock
		switch made := r.chunk(i) != nil; {
		case made:
			m.Set(at, meta.DirtyBlock)
		case m.Test(at):
			return fmt.Errorf("%w: chunk %d of %s is lost; replace the replica (tandemctl volume replica replace)", ErrMisplaced, i, r.dir)
		}
	}
	return cm.file.Save()
}

// made makes it durable that chunk n has been made.
func (m *chunkMap) made(n int64) error {
	m.Lock()
	defer m.Unlock()
	m.file.Map().Set(n*meta.DirtyBlock, meta.DirtyBlock)
	return m.file.Save()
}

func (m *chunkMap) close() {
	if m.pages != nil {
		m.pages.Close()
	}
}

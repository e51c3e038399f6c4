package backing

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
)

// endedOp tells a test that its op has ended.
type endedOp chan error

func (e endedOp) opDone(_ *op, err error) { e <- err }

// TestOldKernel: a kernel that does not know the newest flags gets a ring without
// them, and what is queued together is done.
func TestOldKernel(t *testing.T) {
	const unknown = 1 << 31
	u, err := newUring([]uint32{ringSetupCQSize | unknown, ringSetupCQSize})
	if err != nil {
		t.Fatal(err)
	}
	defer u.close()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	release, err := u.hold(f)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	const n = 3 * ringSlots // more than there are entries or slots
	data := randomBytes(1, n*block.SectorSize)
	done := make(endedOp, n)
	do := func(kind opKind, data []byte) {
		t.Helper()
		ops := make([]*op, n)
		for i := range ops {
			ops[i] = &op{kind: kind, fd: int(f.Fd()), off: int64(i) * block.SectorSize, buf: data[i*block.SectorSize:][:block.SectorSize], owner: done}
		}
		u.submit(ops)
		for range ops {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	}
	do(opWrite, data)
	got := make([]byte, len(data))
	do(opRead, got)
	if !bytes.Equal(got, data) {
		t.Error("what was read is not what was written")
	}
}

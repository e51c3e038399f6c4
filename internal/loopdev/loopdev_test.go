package loopdev

import "testing"

func TestShown(t *testing.T) {
	const mounts = "36 35 0:5 /loop7 /mnt/target rw - devtmpfs udev rw\n37 35 7:8 / /mnt/loop8 rw - xfs /dev/loop9 rw\n38 35 0:5 /x/loop17 /a rw - devtmpfs udev rw\n"
	for n, want := range map[int]bool{7: true, 8: false, 9: false, 17: true, 1: false} {
		if got := shown([]byte(mounts), n); got != want {
			t.Errorf("loop%d: %v", n, got)
		}
	}
}

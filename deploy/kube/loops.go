package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// loopFiles are the files behind the loop devices of this machine, which all nodes share, by device.
func loopFiles() (map[string]string, error) {
	out, err := lab.Run(context.Background(), "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 2 {
			files[f[0]] = f[1]
		}
	}
	return files, nil
}

// freeLoops frees the loop devices of a node that has ended: those that have lost the place of their file with its mounts. before is loopFiles of the
// time before. A machine without power has none; this one would keep them until it is started again.
func freeLoops(before map[string]string) error {
	after, err := loopFiles()
	if err != nil {
		return err
	}
	var errs []error
	for device, file := range after {
		if was := before[device]; was == "" || strings.HasPrefix(file, was) { // another one's, or with " (deleted)" behind it
			continue
		}
		if _, err := lab.Run(context.Background(), "losetup", "--detach", device); err != nil {
			errs = append(errs, fmt.Errorf("kube: free %s: %w", device, err))
		}
	}
	return errors.Join(errs...)
}

// Package order is what the host and the agent in a virtual machine say to each
// other, a line of JSON each, and the contents that the agent's writers write.
package order

// What the agent is asked for.
const (
	Exec   = "exec"   // run Argv to its end; Input is its standard input
	Put    = "put"    // write Input to the file Path
	Mount  = "mount"  // mount Device, of type FS, on Path
	Umount = "umount" // unmount Path
	Daemon = "daemon" // start Argv, its output goes to the log; a Line with Died tells of its end
	Stop   = "stop"   // end the daemon with SIGTERM and wait for it
	Blocks = "blocks" // start the writer of the block device Path
	Files  = "files"  // start the writer of the directory Path
	Quiet  = "quiet"  // end the writers, the requests in flight first
	Read   = "read"   // what is on the block device Path: Versions
	List   = "list"   // what is in the directory Path: Versions
	Digest = "digest" // of the chunk files of every replica below Path
)

// Request is a line to the agent.
type Request struct {
	ID     int      `json:"id"`
	Op     string   `json:"op"`
	Argv   []string `json:"argv,omitempty"`
	Path   string   `json:"path,omitempty"`
	Device string   `json:"device,omitempty"`
	FS     string   `json:"fs,omitempty"`
	Input  string   `json:"input,omitempty"`
	Seed   uint64   `json:"seed,omitempty"`  // of a writer
	After  int64    `json:"after,omitempty"` // a writer's first version is the next one
}

// Line is a line from the agent: an answer, if it has an ID, or news of a writer or of the daemon.
type Line struct {
	ID       int               `json:"id,omitempty"`
	Out      string            `json:"out,omitempty"`
	Error    string            `json:"error,omitempty"`
	Versions []int64           `json:"versions,omitempty"`
	Digests  map[string]string `json:"digests,omitempty"` // by directory name of the replica
	Bytes    int64             `json:"bytes,omitempty"`   // that a digest is of

	Ready  bool   `json:"ready,omitempty"` // the machine is up
	Died   string `json:"died,omitempty"`  // how the daemon ended
	Writer string `json:"writer,omitempty"`
	// News of a writer. A write is told of before it is submitted and after it was confirmed; so is a flush.
	Submit  *Write `json:"submit,omitempty"`
	Confirm int64  `json:"confirm,omitempty"` // version
	Flush   int    `json:"flush,omitempty"`   // number
	Flushed int    `json:"flushed,omitempty"`
	Failed  string `json:"failed,omitempty"` // and the writer has ended
}

// Write is one request of a writer. Of a directory, First is the file and Count is 1.
type Write struct {
	Version int64 `json:"v"` // rises with each write
	First   int64 `json:"b"` // the first of its places: see Offset
	Count   int64 `json:"n"`
	Sync    bool  `json:"s,omitempty"` // stable when it is confirmed
}

// Package nodeplan is what package kube and the first process of a node say to each other.
package nodeplan

// Plan is what a node is made of.
type Plan struct {
	Name     string    `json:"name"`
	Needs    []string  `json:"needs"` // paths of the machine whose file systems the node has, besides those of Debian's programs and of the kernel
	Binds    []Bind    `json:"binds"`
	Programs []Program `json:"programs"` // started in this order, each again when it ends
}

// Bind is a directory of the machine that the node sees at another place.
type Bind struct {
	From string `json:"from"`
	At   string `json:"at"`
}

// Program is one that runs all the time.
type Program struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Log  string   `json:"log"`
}

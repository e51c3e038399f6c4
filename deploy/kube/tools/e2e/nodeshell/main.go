// Command nodeshell lets Kubernetes' tests into a node as they expect it of every node, over SSH: it runs commands with bash for whoever has the key, whose other half is
// also its own. The arguments are the address, the file of the key (PKCS #8) and the PATH of the commands.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/crypto/ssh"
)

func main() {
	fmt.Fprintln(os.Stderr, "nodeshell:", run())
	os.Exit(1)
}

// run returns why it cannot go on.
func run() error {
	if len(os.Args) != 4 {
		return errors.New("wants an address, the file of a key, and a PATH")
	}
	data, err := os.ReadFile(os.Args[2])
	if err != nil {
		return err
	}
	key, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return fmt.Errorf("%s: %w", os.Args[2], err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(k.Marshal(), key.PublicKey().Marshal()) {
			return nil, errors.New("another key")
		}
		return nil, nil
	}}
	config.AddHostKey(key)
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			if err := serve(conn, config, os.Args[3]); err != nil {
				fmt.Fprintln(os.Stderr, "nodeshell:", err)
			}
		}()
	}
}

// serve runs the commands of a connection.
func serve(conn net.Conn, config *ssh.ServerConfig, path string) error {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return err
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		if c.ChannelType() != "session" {
			if err := c.Reject(ssh.UnknownChannelType, "sessions only"); err != nil {
				return err
			}
			continue
		}
		channel, asked, err := c.Accept()
		if err != nil {
			return err
		}
		for r := range asked {
			var command struct{ Text string }
			ok := r.Type == "exec" && ssh.Unmarshal(r.Payload, &command) == nil
			if r.WantReply {
				if err := r.Reply(ok, nil); err != nil {
					return err
				}
			}
			if !ok {
				continue
			}
			code := execute(channel, command.Text, path)
			if _, err := channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{code})); err != nil {
				return err
			}
			break
		}
		if err := channel.Close(); err != nil {
			return err
		}
	}
	return nil
}

// execute returns the exit status of a command.
func execute(channel ssh.Channel, text, path string) uint32 {
	cmd := exec.Command("/bin/bash", "-c", text)
	cmd.Env, cmd.Dir = []string{"PATH=" + path, "HOME=/root"}, "/"
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return uint32(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "nodeshell:", err)
		return 255
	}
	return 0
}

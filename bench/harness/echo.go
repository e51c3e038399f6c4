package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// echo is the round trip of a 4 KiB message and a 16-byte answer on a gRPC bidirectional stream between two
// processes on loopback, without TLS: what a replicated write cannot be faster than while it goes over gRPC.
type echo struct {
	P50 float64 `json:"p50_us"`
	P99 float64 `json:"p99_us"`
	N   int     `json:"n"`
}

// echoServerArg makes this program the server.
const echoServerArg = "echo-server"

const echoMethod = "/tandem.bench.Echo/Stream"

var echoDesc = grpc.ServiceDesc{
	ServiceName: "tandem.bench.Echo",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		answer := wrapperspb.Bytes(make([]byte, 16))
		for {
			var m wrapperspb.BytesValue
			if err := s.RecvMsg(&m); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := s.SendMsg(answer); err != nil {
				return err
			}
		}
	}}},
}

// serveEcho serves until it is killed and tells its address in the first line of out.
func serveEcho(out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, l.Addr())
	s := grpc.NewServer()
	s.RegisterService(&echoDesc, nil)
	return s.Serve(l)
}

// measureEcho starts the server as a process of its own and times round trips, one at a time.
func measureEcho(ctx context.Context, u *lab.Undo) (echo, error) {
	self, err := os.Executable()
	if err != nil {
		return echo{}, err
	}
	cmd := exec.CommandContext(ctx, self, echoServerArg)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return echo{}, err
	}
	if err := cmd.Start(); err != nil {
		return echo{}, err
	}
	stop := func() error {
		_ = cmd.Process.Kill() // it has nothing to lose, and may have ended
		_ = cmd.Wait()
		return nil
	}
	u.Add("echo server", stop)
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return echo{}, err
	}
	conn, err := grpc.NewClient("passthrough:///"+strings.TrimSpace(addr), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return echo{}, err
	}
	defer conn.Close()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, echoMethod)
	if err != nil {
		return echo{}, err
	}
	question := wrapperspb.Bytes(make([]byte, 4096))
	var times []time.Duration
	for begin := time.Now(); time.Since(begin) < 2*time.Second; {
		sent := time.Now()
		if err := stream.SendMsg(question); err != nil {
			return echo{}, err
		}
		if err := stream.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
			return echo{}, err
		}
		times = append(times, time.Since(sent))
	}
	if err := stream.CloseSend(); err != nil {
		return echo{}, err
	}
	slices.Sort(times)
	us := func(q float64) float64 { return float64(times[int(q*float64(len(times)-1))].Nanoseconds()) / 1e3 }
	return echo{P50: us(0.5), P99: us(0.99), N: len(times)}, nil
}

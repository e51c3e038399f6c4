package transport

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// codecName is the content-subtype of sessions.
const codecName = "tandem1"

func init() { encoding.RegisterCodecV2(codec{}) }

// codec carries batches of frames as gRPC messages. It is stateless; the state
// is in the outBatch and inBatch of each Conn.
type codec struct{}

var errNotFrames = errors.New("transport: the content-subtype " + codecName + " is for sessions only")

// Name implements encoding.CodecV2.
func (codec) Name() string { return codecName }

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*outBatch)
	if !ok {
		return nil, fmt.Errorf("%w: %T", errNotFrames, v)
	}
	return b.take(), nil
}

// Unmarshal implements encoding.CodecV2. What is wrong with the frames is left in
// the inBatch, because gRPC would turn it into text.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*inBatch)
	if !ok {
		return fmt.Errorf("%w: %T", errNotFrames, v)
	}
	b.decode(data)
	return nil
}

package state

import (
	"sync"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// Encoders and decoders that nobody uses at the moment. To make one takes longer
// and more memory than most commands, of which each server decodes every one. What
// met an error is not used again.
var (
	encoders = sync.Pool{New: func() any { return newEncoder() }}
	decoders = sync.Pool{New: func() any { return codec.NewDecoderBytes([]byte{}, wire) }}
)

// maxKept is how large a buffer may be that is kept for later, in bytes.
const maxKept = 64 << 10

// encoder writes into a buffer of its own.
type encoder struct {
	codec  *codec.Encoder
	buffer []byte
}

func newEncoder() *encoder {
	e := &encoder{buffer: make([]byte, 0, 512)}
	e.codec = codec.NewEncoderBytes(&e.buffer, wire)
	return e
}

// encode gives the bytes of a value, which are good until release.
func (e *encoder) encode(v any) ([]byte, error) {
	e.codec.ResetBytes(&e.buffer)
	err := e.codec.Encode(v)
	return e.buffer, err
}

// release gives the encoder to whoever needs one next.
func (e *encoder) release() {
	if cap(e.buffer) <= maxKept {
		encoders.Put(e)
	}
}

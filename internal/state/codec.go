package state

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// commandFormat is the first byte of an encoded command: the layout of what
// follows (kind, flags, body).
const commandFormat = 1

// MaxCommand is the greatest encoded command, in bytes.
const MaxCommand = 4 << 20

// headerRoom is at least what comes before the body of a command.
const headerRoom = 16

// Flags of an encoded command.
const (
	// flagSkippable: a program that does not know the kind may act as if
	// the command were not there.
	flagSkippable = 1 << 0
)

// UnknownCommandError says that an encoded command is well-formed but of a kind
// that this program does not know: a newer one wrote it.
type UnknownCommandError struct {
	Kind      uint64
	Skippable bool // its writer says that leaving it out does no harm
}

func (e *UnknownCommandError) Error() string {
	if e.Skippable {
		return fmt.Sprintf("state: command of unknown kind %d, which may be skipped", e.Kind)
	}
	return fmt.Sprintf("state: command of unknown kind %d: a newer program wrote it", e.Kind)
}

// wire is the configuration of MessagePack, and constant: the newer string and
// binary types, and maps in the order of their keys, so that equal values have
// equal bytes.
var wire = func() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.Canonical = true
	return h
}()

// Encode returns the bytes of a command as they go into the log: a format byte,
// the kind (uvarint), a byte of flags, and the command as a MessagePack map.
// Equal commands have equal bytes. What Encode returns Decode accepts; a command
// of more than MaxCommand bytes or 2^17 values is ErrInvalid.
func Encode(cmd Command) ([]byte, error) {
	if cmd == nil {
		return nil, invalid("no command")
	}
	e := encoders.Get().(*encoder)
	body, err := e.encode(cmd)
	if err != nil {
		return nil, fmt.Errorf("state: encode %T: %w", cmd, err)
	}
	defer e.release()
	if len(body) > MaxCommand-headerRoom {
		return nil, invalid("%T takes %d bytes, more than %d", cmd, len(body), MaxCommand-headerRoom)
	}
	if err := checkMsgpack(body); err != nil {
		return nil, invalid("%T is too much for one command: %v", cmd, err)
	}
	b := make([]byte, 0, len(body)+headerRoom)
	b = append(b, commandFormat)
	b = binary.AppendUvarint(b, uint64(cmd.kind()))
	b = append(b, 0)
	return append(b, body...), nil
}

// Decode is the inverse of Encode. Fields that this program does not know are
// left out. A kind that it does not know is an *UnknownCommandError; any other
// error means that the bytes are not a command. It keeps nothing of b, and
// allocates in proportion to its length.
func Decode(b []byte) (Command, error) {
	if len(b) > MaxCommand {
		return nil, fmt.Errorf("state: command has %d bytes, more than %d", len(b), MaxCommand)
	}
	if len(b) == 0 {
		return nil, errors.New("state: command is empty")
	}
	if b[0] != commandFormat {
		return nil, fmt.Errorf("state: command has format %d, not %d", b[0], commandFormat)
	}
	k, n := binary.Uvarint(b[1:])
	if n <= 0 || 1+n >= len(b) {
		return nil, errors.New("state: command ends, or goes wrong, in its header")
	}
	flags, body := b[1+n], b[2+n:]
	switch k {
	case uint64(kindRegister):
		return decodeCommand[Register](body)
	case uint64(kindDeregister):
		return decodeCommand[Deregister](body)
	case uint64(kindUpdateCheck):
		return decodeCommand[UpdateCheck](body)
	case uint64(kindKV):
		return decodeCommand[KV](body)
	case uint64(kindDocument):
		return decodeCommand[PutDocument](body)
	case uint64(kindCluster):
		return decodeCommand[SetCluster](body)
	case uint64(kindCreateSession):
		return decodeCommand[CreateSession](body)
	case uint64(kindDestroySession):
		return decodeCommand[DestroySession](body)
	case uint64(kindRenewSession):
		return decodeCommand[RenewSession](body)
	case uint64(kindEndDelay):
		return decodeCommand[EndDelay](body)
	case uint64(kindTransact):
		return decodeCommand[Transact](body)
	}
	if cmd, err := decodeFuture(k, body); cmd != nil || err != nil {
		return cmd, err
	}
	return nil, &UnknownCommandError{Kind: k, Skippable: flags&flagSkippable != 0}
}

func decodeCommand[C Command](body []byte) (Command, error) {
	var c C
	if err := decodeBody(body, &c); err != nil {
		return nil, fmt.Errorf("state: decode %T: %w", c, err)
	}
	return c, nil
}

// decodeBody decodes one MessagePack map that takes all of b. The structure is
// checked beforehand, because the library believes the lengths it reads.
func decodeBody(b []byte, into any) error {
	if err := checkMsgpack(b); err != nil {
		return err
	}
	d := decoders.Get().(*codec.Decoder)
	d.ResetBytes(b)
	if err := d.Decode(into); err != nil {
		return err
	}
	d.ResetBytes([]byte{}) // or it would keep b
	decoders.Put(d)
	return nil
}

// Codes of the errors that survive a forwarded call.
const (
	codeConflict = "conflict"
	codeNotFound = "not-found"
	codeInvalid  = "invalid"
	codeNoLeader = "no-leader"
	codeUnknown  = "unknown-outcome"
	codeOther    = "other"
)

// sentinels pairs the errors that callers test for with their codes.
var sentinels = []struct {
	code string
	err  error
}{
	{codeConflict, ErrConflict},
	{codeNotFound, ErrNotFound},
	{codeInvalid, ErrInvalid},
	{codeUnknown, ErrUnknownOutcome}, // before no-leader: it says more
	{codeNoLeader, ErrNoLeader},
}

// ErrorCode turns an error into two strings that can cross a connection;
// ErrorFrom makes them an error again. Both are empty for nil.
func ErrorCode(err error) (code, msg string) {
	if err == nil {
		return "", ""
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return s.code, err.Error()
		}
	}
	return codeOther, err.Error()
}

// ErrorFrom is the inverse of ErrorCode: the error has the same text, and
// errors.Is finds ErrConflict, ErrNotFound, ErrInvalid, ErrNoLeader and
// ErrUnknownOutcome in it as it did before. Of an unknown code only the text
// is left.
func ErrorFrom(code, msg string) error {
	if code == "" {
		return nil
	}
	for _, s := range sentinels {
		if s.code == code {
			if msg == s.err.Error() {
				return s.err
			}
			return &forwardedError{sentinel: s.err, msg: msg}
		}
	}
	return errors.New(msg)
}

// forwardedError is an error that happened on another node.
type forwardedError struct {
	sentinel error
	msg      string
}

func (e *forwardedError) Error() string { return e.msg }
func (e *forwardedError) Unwrap() error { return e.sentinel }

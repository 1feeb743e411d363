// Package relp speaks RELP, the protocol in which rsyslog sends lines and
// hears of each that it is stored (librelp's doc/relp.html; version 0, as
// librelp speaks it). It has no sockets: frames, and the two ends' machines.
package relp

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// Limits of the protocol and of librelp.
const (
	// MaxData is the greatest frame's data in bytes that librelp takes (128 KiB)
	// unless told otherwise; of a longer line, a Cutter keeps so much.
	MaxData = 128 << 10
	// MaxTxnr is the greatest transaction number; behind it comes 1.
	MaxTxnr = 999_999_999
	// Window is how many frames librelp sends before it waits for answers.
	Window = 128

	maxCommand = 32
	// MaxFrame is the greatest frame in bytes: numbers, command, data and the
	// spaces and the line feed between and behind them.
	MaxFrame = 9 + 1 + maxCommand + 1 + 9 + 1 + MaxData + 1
)

// Frame is a message of either end.
type Frame struct {
	Txnr    uint32 // 0: a hint, which is not answered
	Command []byte
	Data    []byte
}

// FrameError says why bytes are no frame. The connection can't be used further.
type FrameError struct{ reason string }

func (e *FrameError) Error() string { return "relp: " + e.reason }

func frameErrorf(format string, args ...any) error {
	return &FrameError{fmt.Sprintf(format, args...)}
}

// Parse reads the frame at the start of b and returns how long it is; 0 while
// it is not whole. The frame's command and data are parts of b.
func Parse(b []byte) (f Frame, size int, err error) {
	f, at, length, err := parseHead(b, MaxData)
	// Some senders put the space there though there is no data.
	if at == 0 || err != nil || len(b) <= at+length {
		return Frame{}, 0, err
	}
	return f.with(b, at, length)
}

// parseHead reads a frame up to its data, of which it may say that there are
// so many bytes; at is where the data begins, 0 while the head is not whole.
func parseHead(b []byte, greatest int) (f Frame, at, length int, err error) {
	txnr, n, err := number(b, "transaction number", MaxTxnr)
	if n == 0 || err != nil {
		return Frame{}, 0, 0, err
	}
	if b[n] != ' ' {
		return Frame{}, 0, 0, frameErrorf("byte %#x behind the transaction number, want a space", b[n])
	}
	at = n + 1
	end := bytes.IndexAny(b[at:min(len(b), at+maxCommand+1)], " \n")
	switch {
	case end < 0 && len(b)-at > maxCommand:
		return Frame{}, 0, 0, frameErrorf("a command of more than %d bytes", maxCommand)
	case end < 0:
		return Frame{}, 0, 0, nil
	case end == 0 || b[at+end] == '\n':
		return Frame{}, 0, 0, frameErrorf("no command or no length in a frame")
	}
	f = Frame{Txnr: uint32(txnr), Command: b[at : at+end]}
	at += end + 1
	length, n, err = number(b[at:], "length", greatest)
	if n == 0 || err != nil {
		return Frame{}, 0, 0, err
	}
	at += n
	if b[at] == ' ' {
		at++
	} else if length > 0 {
		return Frame{}, 0, 0, frameErrorf("byte %#x behind the length, want a space", b[at])
	}
	return f, at, length, nil
}

// with is the frame with its data, which b has to the line feed behind it.
func (f Frame) with(b []byte, at, length int) (Frame, int, error) {
	if f.Data = b[at : at+length]; b[at+length] != '\n' {
		return Frame{}, 0, frameErrorf("byte %#x behind the data, want a line feed: the length is wrong", b[at+length])
	}
	return f, at + length + 1, nil
}

// number reads digits and returns how many; 0 while what ends them is not there.
func number(b []byte, what string, greatest int) (value, digits int, err error) {
	for digits < len(b) {
		c := b[digits]
		if c < '0' || c > '9' {
			if digits == 0 {
				return 0, 0, frameErrorf("byte %#x where a %s should be", c, what)
			}
			return value, digits, nil
		}
		if digits++; digits > 9 {
			return 0, 0, frameErrorf("a %s of more than 9 digits", what)
		}
		if value = value*10 + int(c-'0'); value > greatest {
			return 0, 0, frameErrorf("%s %d, want at most %d", what, value, greatest)
		}
	}
	return 0, 0, nil
}

// Append writes a frame behind dst.
func Append(dst []byte, txnr uint32, command string, data []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(txnr), 10)
	dst = append(dst, ' ')
	dst = append(dst, command...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(len(data)), 10)
	if len(data) > 0 {
		dst = append(dst, ' ')
		dst = append(dst, data...)
	}
	return append(dst, '\n')
}

// next is the transaction number that follows.
func next(txnr uint32) uint32 {
	if txnr >= MaxTxnr {
		return 1
	}
	return txnr + 1
}

// ErrClosed is a frame behind the end of a session.
var ErrClosed = errors.New("relp: a frame after close")

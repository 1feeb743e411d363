package syslog

import (
	"bytes"
	"fmt"
)

// Framer cuts a TCP stream into messages. Each is framed in its own way, as
// RFC 6587 has them: with its length in front (§3.4.1), or ended by a line feed
// (§3.4.2). What is longer than Max bytes is cut, and the rest passed over.
type Framer struct {
	Max  int
	skip int  // bytes of a counted message left to pass over
	line bool // pass over all up to the next line feed
	// Cut counts the messages that were longer than Max.
	Cut int
}

// Next returns the first message of b and how many bytes it took; size is 0
// while the message is not whole, and a message may be nil that took some. An
// error is a length that is none: the stream can't be used further.
func (f *Framer) Next(b []byte) (message []byte, size int, err error) {
	switch {
	case len(b) == 0:
		return nil, 0, nil
	case f.skip > 0:
		n := min(f.skip, len(b))
		f.skip -= n
		return nil, n, nil
	case f.line:
		if end := bytes.IndexByte(b, '\n'); end >= 0 {
			f.line = false
			return nil, end + 1, nil
		}
		return nil, len(b), nil
	case b[0] >= '1' && b[0] <= '9':
		return f.counted(b)
	}
	end := bytes.IndexByte(b[:min(len(b), f.Max+1)], '\n')
	switch {
	case end >= 0:
		return bytes.TrimSuffix(b[:end], []byte("\r")), end + 1, nil
	case len(b) <= f.Max:
		return nil, 0, nil
	}
	f.line = true
	f.Cut++
	return b[:f.Max], f.Max, nil
}

// counted takes "LENGTH MESSAGE".
func (f *Framer) counted(b []byte) (message []byte, size int, err error) {
	const digits = 9
	length, at := 0, 0
	for ; at < len(b) && b[at] >= '0' && b[at] <= '9'; at++ {
		if at == digits {
			return nil, 0, fmt.Errorf("syslog: a length of more than %d digits before a message", digits)
		}
		length = length*10 + int(b[at]-'0')
	}
	if at == len(b) {
		return nil, 0, nil
	}
	if b[at] != ' ' {
		return nil, 0, fmt.Errorf("syslog: byte %#x behind the length %d of a message, want a space", b[at], length)
	}
	at++
	whole := min(length, f.Max)
	if len(b)-at < whole {
		return nil, 0, nil
	}
	if length > whole {
		f.skip = length - whole
		f.Cut++
	}
	return bytes.TrimRight(b[at:at+whole], "\r\n"), at + whole, nil
}

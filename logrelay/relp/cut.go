package relp

// MaxLength is the greatest length in bytes that a frame can state: 9 digits
// (librelp's doc/relp.html, DATALEN).
const MaxLength = 999_999_999

// Cutter reads the frames of a connection. Of a line with more than MaxData
// bytes it keeps the first and reads over the rest, as imrelp does since
// rsyslog 8.36: a server that breaks off instead is sent the same frame first
// at each connection, and what stands behind it in the client's queue never
// comes. The zero value is a new connection's. It has at most MaxData bytes.
type Cutter struct {
	// Cut counts the lines that were longer.
	Cut int

	over int // bytes of the line that are yet to be read over
	line Frame
	rest bool // the line feed behind them, too
	kept []byte
}

// Next reads the frame at the start of b and returns how many bytes it took; 0
// while there is nothing to take. f has no command where bytes were read over
// and the frame is not whole yet. The frame's parts are parts of b or the
// Cutter's, and valid until its next call.
func (c *Cutter) Next(b []byte) (f Frame, size int, err error) {
	if c.rest {
		return c.pass(b)
	}
	c.kept = nil // it is rarely needed, and there are thousands of connections
	f, at, length, err := parseHead(b, MaxLength)
	if at == 0 || err != nil {
		return Frame{}, 0, err
	}
	if length <= MaxData {
		if len(b) <= at+length {
			return Frame{}, 0, nil
		}
		return f.with(b, at, length)
	}
	if string(f.Command) != "syslog" {
		return Frame{}, 0, frameErrorf("length %d of command %.32q, want at most %d", length, f.Command, MaxData)
	}
	if len(b) < at+MaxData {
		return Frame{}, 0, nil
	}
	c.kept = append([]byte(nil), b[at:at+MaxData]...)
	c.line, c.over, c.rest = Frame{Txnr: f.Txnr, Command: []byte("syslog"), Data: c.kept}, length-MaxData, true
	return Frame{}, at + MaxData, nil
}

// Amid tells whether the rest of a line is being read over.
func (c *Cutter) Amid() bool { return c.rest }

// pass reads over what is too much, and gives the frame once it is whole.
func (c *Cutter) pass(b []byte) (f Frame, size int, err error) {
	if len(b) <= c.over {
		c.over -= len(b)
		return Frame{}, len(b), nil
	}
	if b[c.over] != '\n' {
		return Frame{}, 0, frameErrorf("byte %#x behind the data, want a line feed: the length is wrong", b[c.over])
	}
	size = c.over + 1
	f, c.line, c.over, c.rest = c.line, Frame{}, 0, false
	c.Cut++
	return f, size, nil
}

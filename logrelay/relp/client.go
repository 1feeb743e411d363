package relp

import "errors"

// Client is one session as the client sees it. The zero value is a new
// connection, which begins with AppendOpen.
type Client struct {
	opened   bool
	last     uint32 // sent
	answered uint32 // the newest that was
	waiting  int
}

// ErrServerClose says that the server wants the client elsewhere.
var ErrServerClose = errors.New("relp: the server closes the session")

// AppendOpen writes the first frame of a session.
func (c *Client) AppendOpen(dst []byte) []byte {
	return c.append(dst, "open", []byte("relp_version=0\nrelp_software=holdfast\ncommands=syslog"))
}

// AppendLine writes a line. Its data is cut at MaxData.
func (c *Client) AppendLine(dst, line []byte) []byte {
	return c.append(dst, "syslog", line[:min(len(line), MaxData)])
}

// AppendClose writes the last frame of a session.
func (c *Client) AppendClose(dst []byte) []byte { return c.append(dst, "close", nil) }

func (c *Client) append(dst []byte, command string, data []byte) []byte {
	c.last = next(c.last)
	c.waiting++
	return Append(dst, c.last, command, data)
}

// Waiting is how many frames are not answered.
func (c *Client) Waiting() int { return c.waiting }

// Step takes a frame of the server and returns how many lines it acknowledges:
// 1 or 0. An error ends the session; what is not acknowledged is to be sent
// once more.
func (c *Client) Step(f Frame) (acknowledged int, err error) {
	switch command := string(f.Command); {
	case f.Txnr == 0 && command == "serverclose":
		return 0, ErrServerClose
	case f.Txnr == 0:
		return 0, nil
	case command != "rsp":
		return 0, frameErrorf("the server sends %.32q, want rsp", command)
	case c.waiting == 0 || f.Txnr != next(c.answered):
		return 0, frameErrorf("answer to transaction %d, want %d", f.Txnr, next(c.answered))
	}
	c.answered = f.Txnr
	c.waiting--
	if len(f.Data) == 0 { // to a close
		return 0, nil
	}
	if code := status(f.Data); code != 200 {
		return 0, frameErrorf("the server refuses transaction %d: %.100q", f.Txnr, f.Data)
	}
	if !c.opened {
		c.opened = true
		return 0, nil
	}
	return 1, nil
}

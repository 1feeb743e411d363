package relp

import (
	"bytes"
	"strconv"
)

// Verdict is what a server does with a frame.
type Verdict int

// Verdicts. Every frame but a hint is answered, in order.
const (
	Ignore Verdict = iota // a hint
	Reply                 // answer with AppendReply: an open
	Store                 // make the line durable, then answer with AppendOK
	Close                 // answer all, then end the connection
)

// Server is one client's session as the server sees it. The zero value is a
// new connection.
type Server struct {
	open, closed bool
	last         uint32
}

// Opened tells whether the client said open.
func (s *Server) Opened() bool { return s.open }

// Step judges a frame. An error ends the session without an answer: the client
// sends what was not answered once more.
func (s *Server) Step(f Frame) (Verdict, error) {
	if s.closed {
		return 0, ErrClosed
	}
	if f.Txnr == 0 {
		return Ignore, nil
	}
	if want := next(s.last); f.Txnr != want {
		return 0, frameErrorf("transaction %d, want %d", f.Txnr, want)
	}
	s.last = f.Txnr
	switch command := string(f.Command); {
	case command == "open" && !s.open:
		s.open = true
		return Reply, nil
	case command == "syslog" && s.open:
		return Store, nil
	case command == "close" && s.open:
		s.closed = true
		return Close, nil
	case !s.open:
		return 0, frameErrorf("command %.32q before open", command)
	default:
		return 0, frameErrorf("command %.32q, want syslog or close", command)
	}
}

// AppendReply answers an open. Version 0 is the one that librelp speaks; its
// client refuses to hear of another.
func AppendReply(dst []byte, f Frame) []byte {
	return Append(dst, f.Txnr, "rsp", []byte("200 OK\nrelp_version=0\nrelp_software=holdfast\ncommands=syslog"))
}

// AppendOK says that a line is stored.
func AppendOK(dst []byte, txnr uint32) []byte {
	dst = strconv.AppendUint(dst, uint64(txnr), 10)
	return append(dst, " rsp 6 200 OK\n"...)
}

// AppendClosed answers a close.
func AppendClosed(dst []byte, f Frame) []byte {
	return AppendServerClose(Append(dst, f.Txnr, "rsp", nil))
}

// AppendServerClose tells the client to go elsewhere.
func AppendServerClose(dst []byte) []byte { return Append(dst, 0, "serverclose", nil) }

// status reads the status of an answer: its first three digits.
func status(data []byte) int {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	code, _, _ := bytes.Cut(line, []byte(" "))
	n, err := strconv.Atoi(string(code))
	if err != nil || len(code) != 3 {
		return 0
	}
	return n
}

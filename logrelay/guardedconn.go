package logrelay

import "net"

// guardedConn is a connection of TLS that is spoken with another node: a panic of what
// reads, writes or closes it is an error (see shipper.guard).
type guardedConn struct {
	net.Conn
	guard func(talk func() error) error
}

func (c guardedConn) Read(b []byte) (n int, err error) {
	err = c.guard(func() (err error) {
		n, err = c.Conn.Read(b)
		return err
	})
	return n, err
}

func (c guardedConn) Write(b []byte) (n int, err error) {
	err = c.guard(func() (err error) {
		n, err = c.Conn.Write(b)
		return err
	})
	return n, err
}

// Close writes, too: TLS says that it ends. Where that panics, TLS leaves the socket
// open, takes itself for closed, and who reads would read on.
func (c guardedConn) Close() error {
	err := c.guard(c.Conn.Close)
	if socket := below(c.Conn); socket != nil {
		_ = socket.Close()
	}
	return err
}

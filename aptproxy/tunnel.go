package aptproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// tunnelIdle ends a tunnel through which nothing went.
const tunnelIdle = 10 * time.Minute

// tunnel connects a client with a host and port, until one of them ends.
func (s *Server) tunnel(w http.ResponseWriter, r *http.Request, host string) {
	server, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(r.Context(), "tcp", host)
	if err != nil {
		http.Error(w, oneLine(err), http.StatusBadGateway)
		return
	}
	defer server.Close()
	client, early, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "CONNECT needs HTTP/1", http.StatusHTTPVersionNotSupported)
		return
	}
	defer client.Close()
	stop := context.AfterFunc(s.life(), func() { _ = errors.Join(client.Close(), server.Close()) })
	defer stop()
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { pipe(server, client, early.Reader) })
	both.Go(func() { pipe(client, server, server) })
	both.Wait()
}

// pipe copies from one end to the other and then tells the other that no more
// comes.
func pipe(to, from net.Conn, in io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		_ = from.SetReadDeadline(time.Now().Add(tunnelIdle))
		n, err := in.Read(buf)
		if n > 0 {
			_ = to.SetWriteDeadline(time.Now().Add(tunnelIdle))
			if _, err := to.Write(buf[:n]); err != nil {
				_ = from.Close()
				return
			}
		}
		if err != nil {
			if half, ok := to.(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
			return
		}
	}
}

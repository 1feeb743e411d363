package lb

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// connFile lists the connections of IPVS in the network namespace.
const connFile = "/proc/thread-self/net/ip_vs_conn"

// maxConns is how much of it is read.
const maxConns = 64 << 20

// Session is a connection that IPVS knows, or a persistence template: who is at
// home where.
type Session struct {
	Protocol string         `json:"protocol"`
	Client   netip.AddrPort `json:"client"` // port 0: a template, of the client's network
	Virtual  netip.AddrPort `json:"virtual"`
	Server   netip.AddrPort `json:"server"`
	Node     string         `json:"node,omitempty"`
	State    string         `json:"state"`
	Expires  time.Duration  `json:"expires"` // unless more comes
}

// Template tells whether it is one.
func (s Session) Template() bool { return s.Client.Port() == 0 }

// readSessions reads the kernel's connections. It must be called on a thread in
// the network namespace.
func readSessions() ([]Session, error) {
	f, err := os.Open(connFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lb: sessions: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConns))
	if err != nil {
		return nil, fmt.Errorf("lb: sessions: %w", err)
	}
	return parseSessions(text), nil
}

// parseSessions reads the kernel's list: protocol, client, virtual service and
// real server with ports in hexadecimal, state, and seconds. What can't be read
// is left out.
func parseSessions(text []byte) (all []Session) {
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 9 {
			continue
		}
		s := Session{Protocol: strings.ToLower(f[0]), State: f[7]}
		var errs [4]error
		s.Client, errs[0] = hexAddr(f[1], f[2])
		s.Virtual, errs[1] = hexAddr(f[3], f[4])
		s.Server, errs[2] = hexAddr(f[5], f[6])
		var seconds uint64
		seconds, errs[3] = strconv.ParseUint(f[8], 10, 31)
		if errors.Join(errs[:]...) == nil {
			s.Expires = time.Duration(seconds) * time.Second
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b Session) int { return a.Client.Compare(b.Client) })
	return all
}

// hexAddr reads "0A010064" or "fd00:0000:...:0001", and "0016".
func hexAddr(addr, port string) (netip.AddrPort, error) {
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if strings.Contains(addr, ":") {
		a, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if err == nil && a.Zone() != "" {
			err = errors.New("a zone")
		}
		return netip.AddrPortFrom(a, uint16(n)), err
	}
	b, err := hex.DecodeString(addr)
	if err != nil || len(b) != 4 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address: %w", addr, errors.Join(err))
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), uint16(n)), nil
}

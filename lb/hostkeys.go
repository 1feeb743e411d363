package lb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Real servers behind one address must have one host key, or users are told
// that somebody listens in. It is looked at rarely: keys change when a machine
// is installed anew.
const (
	keysFirst = 5 * time.Second
	keysEvery = 10 * time.Minute
	keyLimit  = 10 * time.Second
)

var errKeySeen = errors.New("the key was seen")

// hostKey asks an SSH server for its host key and tells its kind and
// fingerprint. It logs in as nobody.
func hostKey(ctx context.Context, server netip.AddrPort) (key string, err error) {
	ctx, cancel := context.WithTimeout(ctx, keyLimit)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	config := &ssh.ClientConfig{
		// The first kind that the server has is the one that is compared.
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSASHA256},
		HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
			key = k.Type() + " " + ssh.FingerprintSHA256(k)
			return errKeySeen
		},
	}
	if _, _, _, err = ssh.NewClientConn(conn, server.String(), config); key != "" {
		return key, nil
	}
	return "", fmt.Errorf("lb: host key of %v: %w", server, err)
}

// compareKeys asks the real servers of SSH services for their host keys now and
// then, until ctx ends. One that does not answer keeps the key it had.
func (s *Service) compareKeys(ctx context.Context) {
	timer := time.NewTimer(keysFirst)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		for _, v := range s.current().Services {
			for _, r := range v.Servers {
				if !v.Director || r.Check.Type() != "ssh" {
					continue
				}
				key, err := hostKey(ctx, netip.AddrPortFrom(r.Addr, v.Port))
				if err != nil {
					s.log.Debug("host key", "name", v.Name, "node", r.Node, "error", err)
					continue
				}
				s.tell(func(p *Planner) { p.HostKey(v.Name, r.Node, key) })
			}
		}
		timer.Reset(keysEvery)
	}
}

// HostKey tells which host key a server has.
func (p *Planner) HostKey(service, node, key string) {
	m := p.services[service]
	if m == nil {
		return
	}
	if m.keys == nil {
		m.keys = map[string]string{}
	}
	m.keys[node] = key
}

// differing tells who has which key, when servers have several; else "".
func (m *memory) differing(servers []Server) string {
	nodes := map[string][]string{}
	for _, r := range servers {
		if key := m.keys[r.Node]; key != "" {
			nodes[key] = append(nodes[key], r.Node)
		}
	}
	if len(nodes) < 2 {
		return ""
	}
	var words []string
	for _, key := range slices.Sorted(maps.Keys(nodes)) {
		words = append(words, fmt.Sprintf("%s has %s", strings.Join(nodes[key], ", "), key))
	}
	slices.Sort(words)
	return strings.Join(words, "; ")
}

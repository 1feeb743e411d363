package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/peer"
)

const nodes = 3

// setup is what both stores have in common.
type setup struct {
	dir, binary string
	pki         string // of each node, and of the admin
	admin       *tls.Config
}

// address of a node; the stores differ in their network, so that both can be
// there at a time.
func address(network byte, node int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 77, network, byte(node + 1)})
}

func nodeName(i int) string { return fmt.Sprintf("fb%d", i+1) }

// prepare makes one authority for both, and a certificate for each node and
// for the client.
func prepare(dir, binary string) (*setup, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	s := &setup{dir: dir, binary: binary, pki: filepath.Join(dir, "pki")}
	ca := filepath.Join(dir, "ca")
	if err := peer.Init(ca, "bench"); err != nil {
		return nil, err
	}
	for i := range nodes {
		r := peer.Request{Identity: peer.Identity{Name: nodeName(i), Role: peer.RoleServer}, IPs: []netip.Addr{address(1, i), address(2, i), netip.AddrFrom4([4]byte{127, 0, 0, 1})}} // etcd looks at whence a node connects
		if err := peer.Issue(ca, filepath.Join(s.pki, nodeName(i)), r); err != nil {
			return nil, err
		}
	}
	admin := filepath.Join(s.pki, "admin")
	if err := peer.Issue(ca, admin, peer.Request{Identity: peer.Identity{Name: "admin", Role: peer.RoleAdmin}}); err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(admin, "node.crt"), filepath.Join(admin, "node.key"))
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(filepath.Join(ca, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("the authority's certificate can't be read")
	}
	s.admin = &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13}
	return s, nil
}

// connections are how many of them a client has to each node: one carries 250
// requests at a time.
const connections = 4

// clients speak HTTP/2 to one node.
type clients [connections]*http.Client

func (s *setup) clients() (c clients) {
	for i := range c {
		protocols := new(http.Protocols)
		protocols.SetHTTP2(true)
		c[i] = &http.Client{Transport: &http.Transport{TLSClientConfig: s.admin.Clone(), Protocols: protocols, HTTP2: &http.HTTP2Config{SendPingTimeout: time.Second, PingTimeout: time.Second}}}
	}
	return c
}

func (c clients) close() {
	for _, one := range c {
		one.CloseIdleConnections()
	}
}

// until tries f every 20 ms, for 30 s.
func until(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := f(one)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (%w)", what, ctx.Err(), err)
		}
	}
}

package raftstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/peer"
)

// followed starts a server that says to each follower who it is.
func followed(t *testing.T) (*hosts, *host) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start(func(c *Config) {
		c.Follow = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "you are "+FollowerOf(r)) })
	})
	h.leader()
	return h, o
}

// certificate issues one by an authority, for a node of our cluster.
// shortLived is a certificate that ends soon, and was good when it was loaded: a
// slow machine may find one of few seconds expired before that.
func shortLived(t *testing.T, ca string, request peer.Request) *peer.Trust {
	t.Helper()
	for request.Validity = 2 * time.Second; request.Validity < 20*time.Second; request.Validity *= 2 {
		dir := filepath.Join(t.TempDir(), "issued")
		if err := peer.Issue(ca, dir, request); err != nil {
			t.Fatal(err)
		}
		trust, err := peer.Load(dir)
		if err == nil {
			return trust
		}
		t.Log(err)
	}
	t.Fatal("no certificate was good for as long as it takes to load it")
	return nil
}

func certificate(t *testing.T, ca string, request peer.Request) *peer.Trust {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "issued")
	if err := peer.Issue(ca, dir, request); err != nil {
		t.Fatal(err)
	}
	trust, err := peer.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

func agent(name string) peer.Request {
	return peer.Request{Identity: peer.Identity{Name: name, Role: peer.RoleAgent}}
}

func TestAnAgentMayFollowAndDoNothingElse(t *testing.T) {
	h, o := followed(t)
	trust := certificate(t, h.ca, agent("front1"))
	f := Follower{Cluster: "foobar", Node: "front1", NodeID: newUUID(), Trust: trust}
	web := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return f.Dial(ctx, address, "fb1") }}}
	response, err := web.Get("http://" + o.address.String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(response.Body)
	response.Body.Close()
	if string(text) != "you are front1" {
		t.Errorf("the server says %q", text)
	}

	for _, kind := range []streamKind{kindRPC, kindRaft} {
		before := refusedBy(o, refusedRole)
		v, err := introduced(t, o, trust, hello{Kind: kind, Cluster: "foobar", Name: "front1", ID: newUUID(), Target: o.id})
		if err != nil || v.Refused != refusedRole {
			t.Errorf("an agent that wants a connection of kind %v: %+v, %v", kind, v, err)
		}
		refusedOnce(t, o, refusedRole, before, "is not for a connection of kind "+kind.String())
	}
	before := refusedBy(o, refusedPreamble)
	if v, err := introduced(t, o, trust, hello{Kind: kindFollow, Cluster: "foobar", Name: "front2", ID: newUUID()}); err != nil || v.Refused != refusedPreamble {
		t.Errorf("an agent under another's name: %+v, %v", v, err)
	}
	refusedOnce(t, o, refusedPreamble, before, "it calls itself front2")
}

// introduced sends a greeting over TLS and reads the verdict.
func introduced(t *testing.T, o *host, trust *peer.Trust, h hello) (verdict, error) {
	t.Helper()
	conn, err := net.Dial("tcp", o.address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(soon))
	secured := tls.Client(conn, trust.Client("fb1"))
	greeting, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secured.Write(greeting); err != nil {
		return verdict{}, err
	}
	return readVerdict(secured)
}

func TestWhoMayNotFollowIsCounted(t *testing.T) {
	h, o := followed(t)
	otherCA := filepath.Join(t.TempDir(), "ca")
	if err := peer.Init(otherCA, "foobar"); err != nil { // of the same name
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		trust   *peer.Trust
		expired bool
		want    refusal
	}{
		"another authority": {certificate(t, otherCA, agent("front1")), false, refusedTLS},
		"an admin":          {certificate(t, h.ca, peer.Request{Identity: peer.Identity{Name: "alice", Role: peer.RoleAdmin}}), false, refusedRole},
		"expired":           {shortLived(t, h.ca, agent("front1")), true, refusedTLS},
	} {
		t.Run(name, func(t *testing.T) {
			if c.expired {
				eventually(t, "the certificate ends", func() error {
					if time.Now().Before(c.trust.Expires().Add(time.Second)) {
						return errors.New("it is valid")
					}
					return nil
				})
			}
			before := refusedBy(o, c.want)
			f := Follower{Cluster: "foobar", Node: c.trust.Identity().Name, NodeID: newUUID(), Trust: c.trust}
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			if conn, err := f.Dial(ctx, o.address.String(), "fb1"); err == nil {
				conn.Close()
				t.Error("it was let in")
			}
			eventually(t, "the refusal is counted", func() error {
				if refusedBy(o, c.want) <= before {
					return fmt.Errorf("no more refusals for %v", c.want)
				}
				return nil
			})
		})
	}
}

func TestANodeHasSoManyConnectionsToFollowAndNoMore(t *testing.T) {
	h, o := followed(t)
	f := Follower{Cluster: "foobar", Node: "front1", NodeID: newUUID(), Trust: certificate(t, h.ca, agent("front1"))}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	dial := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		conn, err := f.Dial(ctx, o.address.String(), "fb1")
		if err == nil {
			_, err = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		}
		if err == nil {
			if _, err = conn.Read(make([]byte, 1)); err != nil { // the refusal comes as the end
				conn.Close()
				return err
			}
			open = append(open, conn)
		}
		return err
	}
	for range maxFollowsOfNode {
		if err := dial(); err != nil {
			t.Fatal(err)
		}
	}
	if err := dial(); err == nil {
		t.Error("there is no end of it")
	}
	refusedOnce(t, o, refusedBusy, 0, "front1 has 16 connections")
	open[0].Close()
	open = open[1:]
	eventually(t, "a place that is free again is given", dial)
	if !strings.Contains(o.log.String(), "busy") {
		t.Error("the log does not say why")
	}
}

package raftstore

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/peer"
	"holdfast/internal/state"
)

func TestPreambleRoundTrip(t *testing.T) {
	want := hello{Kind: kindRaft, Cluster: "foobar", Name: "fb1", ID: "i", Store: "s", Target: "t", levels: levels{Reads: 3, At: 2}}
	b, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(append(b, "what follows"...))
	got, err := readHello(r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(hello{})); diff != "" {
		t.Errorf("hello (-want +got):\n%s", diff)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "what follows" {
		t.Errorf("the hello took bytes of what follows: left %q", rest)
	}
	v := verdict{Refused: refusedStore, Reason: strings.Repeat("x", 300), ID: "i", Store: "s"}
	if b, err = v.encode(); err != nil {
		t.Fatal(err)
	}
	v.Reason = v.Reason[:255]
	if got, err := readVerdict(bytes.NewReader(b)); err != nil || got != v {
		t.Errorf("verdict %+v, %v; want %+v", got, err, v)
	}
	if _, err := (hello{Name: strings.Repeat("x", 256)}).encode(); err == nil {
		t.Error("a name of 256 bytes was encoded")
	}
}

func TestPreambleSaysWhatIsWrong(t *testing.T) {
	for input, want := range map[string]string{
		"GET / HTTP/1.1\r\n":                 `begins with "GET "`,
		"HFST\x02R":                          "protocol version 2, ours is 1",
		"HFST\x01X" + "\x00\x00\x00\x00\x00": "wants a connection of kind 88",
		"HFST\x01R\x05foo":                   "unexpected EOF",
		"HF":                                 "unexpected EOF",
	} {
		if _, err := readHello(strings.NewReader(input)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", input, err, want)
		}
	}
}

func FuzzReadHello(f *testing.F) {
	good, _ := hello{Kind: kindRPC, Cluster: "foobar", Name: "fb1"}.encode()
	f.Add(good)
	leveled, _ := hello{Kind: kindRaft, Cluster: "foobar", Name: "fb1", ID: "i", levels: levels{Reads: 2, At: 1}}.encode()
	f.Add(leveled)
	f.Add([]byte("HFST\x01R\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHello(bytes.NewReader(data))
		if err != nil {
			return
		}
		again, err := h.encode()
		if err != nil || !bytes.HasPrefix(data, again) {
			t.Fatalf("%q was read as %+v, which is %q (%v)", data, h, again, err)
		}
	})
}

func FuzzReadVerdict(f *testing.F) {
	good, _ := verdict{Refused: refusedStore, Reason: "r", ID: "i", Store: "s"}.encode()
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := readVerdict(bytes.NewReader(data)); err == nil && v.Refused.String() == "" && v.Refused != refusedNot {
			t.Fatalf("verdict without a name: %+v", v)
		}
	})
}

func TestJudge(t *testing.T) {
	self := hello{Cluster: "foobar", Name: "fb1", ID: "id1", Store: ourStore}
	fresh := self
	fresh.Store = ""
	const other = "22222222-2222-4222-8222-222222222222"
	for name, c := range map[string]struct {
		self, from hello
		want       refusal
	}{
		"raft in the same store":        {self, hello{Kind: kindRaft, Cluster: "foobar", Store: ourStore, Target: "id1"}, refusedNot},
		"raft for who was here before":  {self, hello{Kind: kindRaft, Cluster: "foobar", Store: ourStore, Target: "id0"}, refusedTarget},
		"raft from another store":       {self, hello{Kind: kindRaft, Cluster: "foobar", Store: other, Target: "id1"}, refusedStore},
		"raft from nowhere":             {self, hello{Kind: kindRaft, Cluster: "foobar", Target: "id1"}, refusedStore},
		"raft to one who has no store":  {fresh, hello{Kind: kindRaft, Cluster: "foobar", Store: ourStore, Target: "id1"}, refusedNot},
		"votes for who was wiped":       {fresh, hello{Kind: kindRaft, Cluster: "foobar", Store: ourStore, Target: "id0"}, refusedTarget},
		"raft from another cluster":     {self, hello{Kind: kindRaft, Cluster: "other", Store: ourStore, Target: "id1"}, refusedCluster},
		"raft to one who is too old":    {level(self, 1, 1), level(hello{Kind: kindRaft, Cluster: "foobar", Store: ourStore, Target: "id1"}, 2, 2), refusedLevel},
		"raft from one who is too old":  {level(self, 2, 2), level(hello{Kind: kindRaft, Cluster: "foobar", Store: ourStore, Target: "id1"}, 1, 1), refusedLevel},
		"raft from one who says none":   {level(self, 2, 2), hello{Kind: kindRaft, Cluster: "foobar", Store: ourStore, Target: "id1"}, refusedLevel},
		"raft from one who can follow":  {level(self, 2, 2), level(hello{Kind: kindRaft, Cluster: "foobar", Store: ourStore, Target: "id1"}, 2, 1), refusedNot},
		"raft from a newer program":     {level(self, 1, 1), level(hello{Kind: kindRaft, Cluster: "foobar", Store: ourStore, Target: "id1"}, 2, 1), refusedNot},
		"a request of one too old":      {level(self, 2, 2), level(hello{Kind: kindRPC, Cluster: "foobar"}, 1, 1), refusedNot},
		"a request of another cluster":  {self, hello{Kind: kindRPC, Cluster: "other"}, refusedCluster},
		"a request of another store":    {self, hello{Kind: kindRPC, Cluster: "foobar", Store: other}, refusedStore},
		"a request of a newcomer":       {self, hello{Kind: kindRPC, Cluster: "foobar"}, refusedNot},
		"a request between two of them": {fresh, hello{Kind: kindRPC, Cluster: "foobar"}, refusedNot},
	} {
		if got, reason := judge(c.self, c.from); got != c.want || (got != refusedNot) != (reason != "") {
			t.Errorf("%s: %q (%s), want %q", name, got, reason, c.want)
		}
	}
}

func level(h hello, reads, store int) hello {
	h.levels = levels{Reads: reads, At: store}
	return h
}

// refusedBy counts a server's refusals for one reason.
func refusedBy(o *host, r refusal) float64 {
	return testutil.ToFloat64(o.store.metrics.refused.WithLabelValues(r.String()))
}

// refusedOnce waits until the server has counted and logged a refusal.
func refusedOnce(t *testing.T, o *host, r refusal, before float64, line string) {
	t.Helper()
	eventually(t, "refused: "+r.String(), func() error {
		if got := refusedBy(o, r); got <= before {
			return fmt.Errorf("%v refusals", got)
		}
		if !strings.Contains(o.log.String(), line) {
			return fmt.Errorf("no %q in the log", line)
		}
		return nil
	})
}

func TestStrangersAreRefused(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	h.leader()

	otherCA := filepath.Join(t.TempDir(), "ca")
	if err := peer.Init(otherCA, "other"); err != nil {
		t.Fatal(err)
	}
	issue := func(ca string, role peer.Role, name string) *peer.Trust {
		dir := filepath.Join(t.TempDir(), name)
		if err := peer.Issue(ca, dir, peer.Request{Identity: peer.Identity{Name: name, Role: role}}); err != nil {
			t.Fatal(err)
		}
		trust, err := peer.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return trust
	}
	server := issue(h.ca, peer.RoleServer, "fb7")
	blind := issue(otherCA, peer.RoleServer, "fb7").Client("")
	blind.InsecureSkipVerify, blind.VerifyConnection = true, nil
	forced, err := blind.GetClientCertificate(&tls.CertificateRequestInfo{Version: tls.VersionTLS13, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}})
	if err != nil {
		t.Fatal(err)
	}
	blind.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return forced, nil }

	greet := func(h hello) func(net.Conn) {
		return func(c net.Conn) {
			b, err := h.encode()
			if err != nil {
				t.Error(err)
			}
			c.Write(b)
		}
	}
	good := hello{Kind: kindRPC, Cluster: "foobar", Name: "fb7", ID: newUUID()}
	with := func(change func(*hello)) hello { h := good; change(&h); return h }
	for name, c := range map[string]struct {
		tls  *tls.Config
		send func(net.Conn)
		want refusal
		log  string
	}{
		"plain text":             {nil, func(c net.Conn) { fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n") }, refusedTLS, "first record does not look like a TLS handshake"},
		"another authority":      {blind, nil, refusedAuthority, "claims to be server fb7 of cluster other"},
		"an agent":               {issue(h.ca, peer.RoleAgent, "front1").Client("fb1"), nil, refusedRole, "agent front1 of cluster foobar refused: this port is for servers only"},
		"an admin":               {issue(h.ca, peer.RoleAdmin, "alice").Client("fb1"), nil, refusedRole, "admin alice of cluster foobar refused"},
		"garbage after TLS":      {server.Client("fb1"), func(c net.Conn) { fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n") }, refusedPreamble, "not a Holdfast server's greeting"},
		"a false name":           {server.Client("fb1"), greet(with(func(h *hello) { h.Name = "fb1" })), refusedPreamble, "it calls itself fb1, its certificate is that of server fb7"},
		"another cluster's name": {server.Client("fb1"), greet(with(func(h *hello) { h.Cluster = "other" })), refusedCluster, `fb7 is of cluster \"other\"`},
		"another store":          {server.Client("fb1"), greet(with(func(h *hello) { h.Store = ourStore })), refusedStore, "fb7 has store " + ourStore},
		"votes for a former ID":  {server.Client("fb1"), greet(with(func(h *hello) { h.Kind, h.Target = kindRaft, ourStore })), refusedTarget, "looks for the server with ID " + ourStore},
	} {
		t.Run(name, func(t *testing.T) {
			before := refusedBy(o, c.want)
			conn, err := net.Dial("tcp", o.address.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(soon))
			if c.tls != nil {
				secured := tls.Client(conn, c.tls)
				secured.Handshake() // the refusal may come only with the first read
				conn = secured
			}
			if c.send != nil {
				c.send(conn)
			}
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection stays open")
			}
			refusedOnce(t, o, c.want, before, c.log)
		})
	}
	eventually(t, "the condition about the other store", func() error {
		for _, c := range o.board.Conditions() {
			if c.Name == conditionOtherStore && strings.Contains(c.Message, "fb7 has store "+ourStore) {
				return nil
			}
		}
		return fmt.Errorf("%+v", o.board.Conditions())
	})
	o.put("still", "here")
}

func TestSilentConnectionsAreClosed(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start(func(c *Config) { c.Timing = 0.1 })
	conn, err := net.Dial("tcp", o.address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(soon))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a silent connection: %v, want that it is closed", err)
	}
	refusedOnce(t, o, refusedTimeout, 0, "why=timeout")
}

func TestOneLineAMinuteForEachSource(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	for range 5 {
		conn, err := net.Dial("tcp", o.address.String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "hello, is this a TLS port?\n")
		io.Copy(io.Discard, conn)
		conn.Close()
	}
	refusedOnce(t, o, refusedTLS, 4, "why=tls")
	if n := strings.Count(o.log.String(), `level=WARN msg="connection refused"`); n != 1 {
		t.Errorf("%d lines in the log for five refusals of one source", n)
	}
}

// A server that was wiped listens where the old one did. A candidate that
// does not know it yet must not get a vote there.
func TestWipedServerDoesNotVoteForWhatItWas(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	candidate := h.leader()
	victim := h.besides(candidate)[0]
	old := victim.id
	victim.kill()
	victim.wipe()
	// Alone it would grant everything: its log and its configuration are empty.
	victim.start(func(c *Config) { c.Servers = []string{"fb1", "fb2", "fb3"} })
	e := candidate.store.engine.Load()
	req := &raft.RequestVoteRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(candidate.id), Addr: []byte(candidate.address.String())},
		Term:      1000, LeadershipTransfer: true,
	}
	eventually(t, "a refusal", func() error { // not by a connection of the past
		var resp raft.RequestVoteResponse
		err := e.trans.NetworkTransport.RequestVote(raft.ServerID(old), raft.ServerAddress(old+"@"+victim.address.String()), req, &resp)
		if resp.Granted {
			t.Fatal("granted")
		}
		if err == nil || !strings.Contains(err.Error(), "looks for the server with ID "+old) {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	if term := victim.store.Status().Term; term >= 1000 {
		t.Errorf("the request reached raft: term %d", term)
	}
}

func TestServerWithAnotherStoreIsNotMixedIn(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	lost := h.all["fb3"]
	lost.stop()
	id := h.leader().store.ClusterID()
	// fb3 comes back with the disk of another life.
	lost.wipe()
	if err := writeRecord(lost.dir, record{NodeID: lost.id, ClusterID: ourStore}); err != nil {
		t.Fatal(err)
	}
	lost.clusterID = ourStore
	lost.start()
	leader := h.running()[0]
	if !leader.store.IsLeader() {
		leader = h.running()[1]
	}
	eventually(t, "fb3 is refused with a sentence", func() error {
		for _, o := range []*host{h.all["fb1"], h.all["fb2"]} {
			for _, c := range o.board.Conditions() {
				if c.Name == conditionRefused && strings.Contains(c.Message, "fb3") && strings.Contains(c.Message, ourStore) {
					return nil
				}
			}
		}
		return fmt.Errorf("%+v", leader.board.Conditions())
	})
	if got := lost.store.ClusterID(); got != ourStore {
		t.Errorf("fb3 changed its store from %s to %s (the others have %s)", ourStore, got, id)
	}
	h.all["fb1"].put("k", "v")
	if lost.get("k") != "" {
		t.Error("a write reached a server of another store")
	}
}

func TestOneSourceCannotTakeAllPlaces(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	for range maxGreetingOfSource + 5 {
		conn, err := net.Dial("tcp", o.address.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	refusedOnce(t, o, refusedBusy, 4, "why=busy")
	n := o.store.engine.Load().net
	eventually(t, "places for others", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.greeted > maxGreetingOfSource {
			return fmt.Errorf("%d places taken", n.greeted)
		}
		return nil
	})
}

func TestServerThatLostItsLogDoesNotStart(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	h.leader()
	o.stop()
	if err := os.Remove(filepath.Join(o.dir, "raft", logName)); err != nil {
		t.Fatal(err)
	}
	store, err := New(o.config(), state.New(), Deps{})
	if err != nil {
		t.Fatal(err)
	}
	err = store.Run(t.Context(), func() { t.Error("it says that it is ready") })
	if err == nil || !strings.Contains(err.Error(), "is gone, but this server had one") {
		t.Fatalf("Run: %v", err)
	}
}

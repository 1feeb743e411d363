package logrelay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/peer"
)

// TestARefusedNodeIsNamedWhereItIsRefused: the condition says which node it is by
// its address, and why: another authority, no server, another's name, another
// version. It ends when the node is let in. It fails where a refusal is one of
// many connections that ended with an error.
func TestARefusedNodeIsNamedWhereItIsRefused(t *testing.T) {
	n := nodes(t, "fb1")[0]
	n.start(t)
	defer n.end()
	from := netip.MustParseAddr("127.0.7.9")
	table := *n.table.Load()
	table.nodes = map[netip.Addr]string{from: "fb9"}
	n.table.Store(&table)

	dir := t.TempDir()
	ours := filepath.Join(n.dir, "..", "ca")
	theirs := filepath.Join(dir, "ca")
	if err := peer.Init(theirs, "foobar"); err != nil {
		t.Fatal(err)
	}
	trust := func(ca string, role peer.Role) *tls.Config {
		pki := filepath.Join(dir, fmt.Sprint(role, filepath.Base(filepath.Dir(ca))))
		if err := peer.Issue(ca, pki, peer.Request{Identity: peer.Identity{Name: "fb9", Role: role}}); err != nil {
			t.Fatal(err)
		}
		loaded, err := peer.Load(pki)
		if err != nil {
			t.Fatal(err)
		}
		return loaded.Client("fb1")
	}
	stranger := trust(theirs, peer.RoleServer)
	stranger.InsecureSkipVerify, stranger.VerifyConnection, stranger.VerifyPeerCertificate = true, nil, nil // else it is the one to refuse
	server := trust(ours, peer.RoleServer)
	hello := greeting{journal: [16]byte{9}, node: "fb9"}.append(nil)
	for _, test := range []struct {
		name   string
		config *tls.Config
		says   []byte
		want   []string // in the condition; nil: there is none
	}{
		{"authority", stranger, hello, []string{"fb9: ", "server fb9 of cluster foobar", "unknown authority"}},
		{"role", trust(ours, peer.RoleAgent), hello, []string{"fb9: ", "agent fb9 of cluster foobar", "for servers only"}},
		{"let in", server, hello, nil},
		{"name", server, greeting{node: "fb8"}.append(nil), []string{"fb9: ", "says that it is fb8"}},
		{"let in again", server, hello, nil},
		{"version", server, bytes.Replace(hello, []byte("HOLDREP1"), []byte("HOLDREP2"), 1), []string{"fb9: ", `"HOLDREP2"`, `"HOLDREP1"`}},
	} {
		dialer := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}, Config: test.config}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(n.addr, testReplica).String())
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = conn.Write(test.says)
		var answer [8]byte
		if _, failed := io.ReadFull(conn, answer[:]); failed != nil {
			err = errors.Join(err, failed)
		}
		if (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v, answer %d", test.name, err, binary.LittleEndian.Uint64(answer[:]))
		}
		_ = conn.Close()
		eventually(t, 20*time.Second, test.name, func() error {
			said := ""
			for _, c := range n.board.Conditions() {
				if c.Name == conditionRefused {
					said = c.Message
				}
			}
			if test.want == nil && said != "" {
				return fmt.Errorf("it still says: %s", said)
			}
			for _, want := range test.want {
				if !strings.Contains(said, want) {
					return fmt.Errorf("no %q in %q", want, said)
				}
			}
			return nil
		})
		n.refusals.mu.Lock() // the next is news: no minute has passed
		for _, one := range n.refusals.nodes {
			one.told = time.Time{}
		}
		n.refusals.mu.Unlock()
	}
}

// TestARefusedNodeIsLoggedOnceAMinute, in virtual time, though it comes once a
// second; the condition goes five minutes after it stopped. Strangers are logged
// as often, all together, and have no condition: anybody can come.
func TestARefusedNodeIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		board := health.NewBoard(time.Now, nil, nil)
		r := refusals{board: board, log: slog.New(slog.NewTextHandler(&out, nil))}
		known, stranger := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("192.0.2.7")
		for range 150 {
			r.note("", stranger, errors.New("no TLS"), time.Now())
			r.note("fb2", known, errors.New("expired at\nsome time"), time.Now())
			r.expire(time.Now())
			<-time.After(time.Second)
		}
		if got := strings.Count(out.String(), "node=fb2 address=10.1.0.2 "); got != 3 || !strings.Contains(out.String(), "times=60") {
			t.Errorf("in two and a half minutes it is logged %d times: %s", got, out.String())
		}
		if got := strings.Count(out.String(), "address=192.0.2.7 "); got != 3 {
			t.Errorf("strangers are logged %d times", got)
		}
		c := board.Conditions()
		if len(c) != 1 || c[0].Name != conditionRefused || !strings.Contains(c[0].Message, "refused: fb2: expired at; some time") || strings.Contains(c[0].Message, "no TLS") {
			t.Errorf("conditions: %v", c)
		}
		<-time.After(refusalsFor - 2*time.Second)
		if r.expire(time.Now()); len(board.Conditions()) != 1 {
			t.Error("the condition went too early")
		}
		<-time.After(2 * time.Second)
		if r.expire(time.Now()); len(board.Conditions()) != 0 || len(r.nodes) != 0 {
			t.Errorf("it stays: %v", board.Conditions())
		}
	})
}

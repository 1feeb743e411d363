package vrrp_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/site"
)

// TestMoveReachesAnotherNodeOverMutualTLS: the whole cluster of the example,
// with its certificates; `vip move --to` on one node makes another hold.
func TestMoveReachesAnotherNodeOverMutualTLS(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s, err := site.New(ctx, site.Options{
		Binary: binary, File: "../examples/scibian.yaml",
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	one, two := s.Node("fbservice1"), s.Node("fbservice2")
	until := func(n *site.Node, words string, args ...string) {
		t.Helper()
		if err := site.Poll(ctx, func(ctx context.Context) error {
			out, err := n.CLI(ctx, append([]string{"vip"}, args...)...)
			if err != nil || !strings.Contains(out, words) {
				return fmt.Errorf("%s: vip %s: %q, %w", n.Name(), strings.Join(args, " "), out, err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	until(one, "fbservice1 holds it", "explain", "dns1")
	out, err := one.CLI(ctx, "explain", "dns1") // through the agent's API
	if err != nil || !strings.Contains(out, "fbservice1 holds it") {
		t.Errorf("explain dns1: %q: %v", out, err)
	}
	out, err = one.CLI(ctx, "vip", "move", "dns1", "--to", "fbservice2")
	if err != nil || !strings.Contains(out, "fbservice2 holds dns1") {
		t.Fatalf("%q: %v", out, err)
	}
	until(two, "fbservice2 holds it", "explain", "dns1")
	if err := s.InstallAdmin(s.Client); err != nil {
		t.Fatal(err)
	}
	shown, err := s.Client.Run(ctx, binary, "vip", "list", "--server", "https://"+two.Addr().String()+":8501")
	if err != nil || !strings.Contains(shown, "held") {
		t.Errorf("over HTTPS: %q, %v", shown, err)
	}
	until(two, "priorities decide", "release", "dns1")
}

// TestAMoveHasTheHoldersClientsHeardOutWhereverItIsTyped: on a third node, and on
// the one that takes the address, the log relay of the holder ends its sessions
// before the address goes; a node whose API can't be reached loses it all the same,
// and that is said. A node that is no member may not have sessions end.
func TestAMoveHasTheHoldersClientsHeardOutWhereverItIsTyped(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	text, err := os.ReadFile("../examples/scibian.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), "{voters: 3, run: [dns]}", "{voters: 3, run: [dns, logs]}", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := site.New(ctx, site.Options{
		Binary: binary, File: file, Followers: []string{"fbfront1"},
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	one, two, three := s.Node("fbservice1"), s.Node("fbservice2"), s.Node("fbservice3")
	polled := func(what string, try func() error) {
		t.Helper()
		if err := site.Poll(ctx, func(context.Context) error { return try() }); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	const ended = "sessions ended, since their address is about to go to another node"
	// visit has a client send a line to the address, when a node has it, and get it
	// answered. What comes back says whether the node was told before it lost it.
	visit := func(n *site.Node) (left func(told bool)) {
		t.Helper()
		polled(n.Name()+" holds it", func() error {
			out, err := n.CLI(ctx, "vip", "explain", "dns1")
			if err != nil || !strings.Contains(out, n.Name()+" holds it, for") {
				return fmt.Errorf("%q, %w", out, err)
			}
			return nil
		})
		heard := strings.Count(n.Log(), ended)
		conn, err := s.Client.DialContext(ctx, "tcp", "10.1.0.101:20514")
		if err != nil {
			t.Fatal(err)
		}
		open, line := "relp_version=0\nrelp_software=test\ncommands=syslog", "<13>Nov 25 12:00:00 client test: a line"
		if _, err := fmt.Fprintf(conn, "1 open %d %s\n2 syslog %d %s\n", len(open), open, len(line), line); err != nil {
			t.Fatal(err)
		}
		// Not before the relay knows that the address has come back to stay: a
		// session is held while it may go.
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		for answers := bufio.NewReader(conn); ; {
			answer, err := answers.ReadString('\n')
			if err != nil {
				t.Fatalf("%s does not answer: %v", n.Name(), err)
			}
			if strings.HasPrefix(answer, "2 rsp") {
				break
			}
		}
		return func(told bool) {
			t.Helper()
			defer conn.Close()
			if now := strings.Count(n.Log(), ended); (now > heard) != told {
				t.Errorf("the relay of %s was told %d times, and %d before; want told %v; its log: %s", n.Name(), now, heard, told, n.Log())
			}
		}
	}
	moves := func(n *site.Node, want string, args ...string) {
		t.Helper()
		out, err := n.CLI(ctx, append([]string{"vip"}, args...)...)
		if err != nil || !strings.Contains(out, want) || strings.Contains(out, "told") != strings.Contains(want, "told") {
			t.Errorf("%s: vip %s: %q, %v; want %q", n.Name(), strings.Join(args, " "), out, err, want)
		}
	}

	left := visit(one)
	moves(three, "fbservice2 holds dns1", "move", "dns1", "--to", "fbservice2")
	left(true)

	left = visit(two)
	moves(two, "priorities decide", "release", "dns1")
	moves(three, "fbservice3 holds dns1", "hold", "dns1")
	left(true)

	// A node that is no member of the address, with its own certificate.
	left = visit(three)
	stranger := s.Followers[0]
	out, err := stranger.Host.Run(ctx, "curl", "-sS", "--cacert", "/etc/holdfast/pki/ca.crt", "--cert", "/etc/holdfast/pki/node.crt",
		"--key", "/etc/holdfast/pki/node.key", "-X", "POST", "https://"+three.Addr().String()+":8501/v1/holdfast/vip/leave/dns1")
	if !strings.Contains(out, "Permission denied") {
		t.Errorf("%s is no member and asks: %q, %v", stranger.Name(), out, err)
	}
	left(false)

	left = visit(three)
	moves(three, "priorities decide", "release", "dns1")
	if _, err := one.Host.Run(ctx, "nft", "add table ip f; add chain ip f out { type filter hook output priority 0; }; "+
		"add rule ip f out ip daddr "+three.Addr().String()+" tcp dport 8501 reject with tcp reset"); err != nil {
		t.Fatal(err)
	}
	moves(one, "the holder fbservice3 could not be told before: some log lines may come twice", "hold", "dns1")
	left(false)
}

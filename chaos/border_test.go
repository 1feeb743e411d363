package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"holdfast/lab"
	"holdfast/lab/site"
)

// A machine of another cluster, or with another authority, that was given the
// place of a server must stay outside, and must be noticed.
func TestServerWithForeignCertificatesStaysOutside(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx := t.Context()
	ours, stranger := s.Nodes[:3], s.Nodes[3]
	foreign, err := site.Certify(ctx, binary, "../examples/scibian.yaml", s.File.Name, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.InstallCertificates(foreign); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	settle(t, s, ours)
	within(t, patience, "the stranger's gossip is refused and counted", func(ctx context.Context) error {
		return counted(ctx, ours[0], "holdfast_discovery_")
	})
	for _, n := range ours {
		var members []struct{ Name string }
		if err := n.Get(ctx, "/v1/agent/members", &members); err != nil {
			t.Fatal(err)
		}
		for _, m := range members {
			if m.Name == stranger.Name() {
				t.Errorf("%s has the stranger among its members", n.Name())
			}
		}
		// The third may be on its way in still.
		within(t, patience, n.Name()+" knows of three servers of the store", func(ctx context.Context) error {
			voters, others, err := raftServers(ctx, n)
			if count := len(voters) + len(others); err == nil && count != 3 {
				err = fmt.Errorf("voters %v, others %v", voters, others)
				if count > 3 {
					t.Fatal(err)
				}
			}
			return err
		})
	}
	within(t, patience, "the stranger's own agent answers", func(ctx context.Context) error {
		leader, err := stranger.Leader(ctx)
		if leader != "" {
			t.Fatalf("the stranger knows a leader: %q", leader)
		}
		return err
	})
}

// counted looks for a counter of refusals that is not zero.
func counted(ctx context.Context, n *site.Node, prefix string) error {
	text, err := n.Do(ctx, "GET", "/v1/agent/metrics?format=prometheus", nil)
	if err != nil {
		return err
	}
	var seen []string
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(name, prefix) || !strings.Contains(name, "refused") {
			continue
		}
		seen = append(seen, line)
		if v, err := strconv.ParseFloat(value, 64); err == nil && v > 0 {
			return nil
		}
	}
	return fmt.Errorf("nothing was counted: %v", seen)
}

func TestAdminElsewhereNeedsAnAdminsCertificate(t *testing.T) {
	t.Parallel()
	s := startedSite(t)
	ctx := t.Context()
	url := "https://" + s.Nodes[1].Addr().String() + ":8501"
	if err := s.InstallAdmin(s.Client); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "an admin elsewhere writes", func(ctx context.Context) error {
		out, err := s.Client.Run(ctx, binary, "kv", "put", "from/elsewhere", "yes", "--server", url)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	if out, err := s.Client.Run(ctx, binary, "members", "--server", url); err != nil || !strings.Contains(out, "fbservice4") {
		t.Errorf("members from elsewhere: %v\n%s", err, out)
	}
	if err := s.Nodes[0].CopyCertificates(s.Client, "/etc/holdfast/other"); err != nil {
		t.Fatal(err)
	}
	var exit *lab.ExitError
	out, err := s.Client.Run(ctx, binary, "kv", "put", "from/elsewhere", "no", "--server", url, "--pki", "/etc/holdfast/other")
	if !errors.As(err, &exit) {
		t.Errorf("a node's certificate passed for an admin's: %s", out)
	}
	if err := hasKey(ctx, s.Nodes[1], "from/elsewhere", "yes"); err != nil {
		t.Error(err)
	}
}

// A bare machine with no file at all is a cluster of its own.
func TestAgentWithoutAnyConfigurationIsAClusterOfItsOwn(t *testing.T) {
	t.Parallel()
	l := lab.NewTest(t, lab.Options{Networks: []string{"net"}, Expose: []string{binary}})
	host, err := l.AddHost("alone", lab.On("net", "10.9.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	agent, err := host.Start(lab.Cmd{Args: []string{binary, "agent"}, Name: "agent"})
	if err != nil {
		t.Fatal(err)
	}
	within(t, patience, "have a leader", func(ctx context.Context) error {
		_, err := host.Run(ctx, binary, "status")
		return err
	})
	within(t, patience, "take a write", func(ctx context.Context) error {
		out, err := host.Run(ctx, binary, "kv", "put", "a", "1")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	// The leader is there before the node's own row is in the catalog.
	within(t, patience, "know its own name", func(ctx context.Context) error {
		out, err := host.Run(ctx, "dig", "+short", "@127.0.0.1", "alone.node.virtual")
		if err == nil && strings.TrimSpace(out) != "127.0.0.1" {
			err = fmt.Errorf("dig alone.node.virtual: %q", out)
		}
		return err
	})
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Start(lab.Cmd{Args: []string{binary, "agent"}, Name: "agent"}); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "have its data again after a kill -9", func(ctx context.Context) error {
		out, err := host.Run(ctx, binary, "kv", "get", "a")
		if err == nil && out != "1" {
			err = fmt.Errorf("it has %q", out)
		}
		return err
	})
}

// A node starts from its last good file when the new one is broken, says so,
// and the skew is seen.
func TestBrokenClusterFileStartsFromTheLastGoodCopy(t *testing.T) {
	t.Parallel()
	s := startedSite(t)
	ctx := t.Context()
	n := s.Nodes[2]
	path := filepath.Join(n.Host.Disk(), "etc/holdfast/cluster.yaml")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(good, "\nnonsense: true\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartAgent(); err != nil {
		t.Fatal(err)
	}
	settle(t, s, s.Nodes)
	out, err := n.CLI(ctx, "config", "status")
	if err != nil || !strings.Contains(out, "last good copy") || !strings.Contains(out, "nonsense") {
		t.Errorf("config status does not say it: %v\n%s", err, out)
	}
	// Another file that is right, on one node alone, is a skew.
	if err := os.WriteFile(path, append(good, "\n# changed\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := n.CLI(ctx, "config", "reload"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	within(t, patience, "the others see the skew", func(ctx context.Context) error {
		out, err := s.Nodes[0].CLI(ctx, "config", "status")
		if err == nil && !strings.Contains(out, "different files") {
			err = errors.New(out)
		}
		return err
	})
}

package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/site"
)

// A diskless frontend boots again and again with nothing but a token in its image:
// each time it gets a certificate and the cluster file, follows the servers under a
// new ID, and its service is answered again.
func TestADisklessNodeJoinsByItsTokenAtEachBoot(t *testing.T) {
	const authority = "/etc/holdfast/ca"
	s, err := site.New(t.Context(), site.Options{
		Binary: binary, File: "testdata/followers.yaml", Followers: []string{"fbfront1"},
		AgentArgs: []string{"--join-authority", authority},
		Lab:       func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Nodes {
		if err := s.CopyAuthority(n.Host, authority); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	settle(t, s, s.Nodes)
	// Both are tried again while an election goes on, as an admin and systemd do.
	var out string
	within(t, patience, "a token is made", func(ctx context.Context) (err error) {
		out, err = s.Nodes[0].CLI(ctx, "join-token", "create", "--json", "--nodes", "fbfront1", "--uses", "any")
		return err
	})
	var made struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Token == "" {
		t.Fatalf("%v: %s", err, out)
	}
	front := s.Followers[0]
	const state, image = "/var/lib/holdfast", "/join.token"
	if err := front.Host.Write(image, []byte(made.Token)); err != nil {
		t.Fatal(err)
	}
	var before []byte
	for boot := range 3 {
		if front.Host.IsOn() {
			if err := front.PowerOff(); err != nil {
				t.Fatal(err)
			}
		}
		if err := front.Host.WipeDisk(); err != nil {
			t.Fatal(err)
		}
		if err := front.Host.PowerOn(); err != nil {
			t.Fatal(err)
		}
		if err := front.StartServices(t.Context()); err != nil {
			t.Fatal(err)
		}
		where := []string{"--node", "fbfront1", "--config", state + "/cluster.yaml", "--pki", state + "/pki"}
		within(t, patience, fmt.Sprintf("boot %d: join", boot), func(ctx context.Context) error {
			joined, err := front.Host.Run(ctx, append([]string{binary, "join", "10.1.0.1", "10.1.0.2", "--token-file", image}, where...)...)
			if err == nil && !strings.Contains(joined, "has its certificate and its cluster file") {
				err = errors.New(joined)
			}
			return err
		})
		if _, err := front.Host.Start(lab.Cmd{Args: append([]string{binary, "agent"}, where...), Name: fmt.Sprintf("boot%d", boot)}); err != nil {
			t.Fatal(err)
		}
		_, took := freshFrom(t, front, "")
		within(t, patience, "a server answers for the frontend's service", func(ctx context.Context) error {
			return answers(ctx, s, s.Nodes[2], "login.service.virtual", addrsOf(s.Followers))
		})
		within(t, patience, "the frontend answers for the servers'", func(ctx context.Context) error {
			return answers(ctx, s, front, "apt.service.virtual", addrsOf(s.Nodes))
		})
		certificate, err := front.Host.Read(state + "/pki/node.crt")
		if err != nil || bytes.Equal(certificate, before) {
			t.Errorf("boot %d: the certificate is that of the boot before, or none: %v", boot, err)
		}
		before = certificate
		t.Logf("boot %d: fresh after %v", boot, took.Round(10*time.Millisecond))
	}
}

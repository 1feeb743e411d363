package chaos_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/stream"
	"holdfast/lab"
	"holdfast/lab/site"
)

// A frontend's units are processes of their own: the one that holds its virtual
// address hears of a drain by way of core, goes on when core is killed, and when it
// starts without core it still knows that the node is drained.
func TestTheAddressOfAFrontendOutlivesCoreAndKnowsDrains(t *testing.T) {
	machine := watchMachine(t)
	s, err := site.New(t.Context(), site.Options{
		Binary: binary, File: "testdata/followers.yaml", Followers: []string{"fbfront1", "fbfront2"},
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	settle(t, s, s.Nodes)
	one, two := s.Followers[0], s.Followers[1]
	if err := one.StartServices(t.Context()); err != nil {
		t.Fatal(err)
	}
	unit := func(name string) *lab.Proc {
		t.Helper()
		p, err := one.Host.Start(lab.Cmd{Args: []string{binary, "agent", "--only", name}, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	core, net := unit("core"), unit("net")
	unit("dns")
	if err := two.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	const plain, fenced = "10.1.0.100", "10.1.0.102"
	holds := func(address string, want *site.Node, when string) {
		t.Helper()
		within(t, patience, fmt.Sprintf("%s holds %s %s", want.Name(), address, when), func(ctx context.Context) error {
			for _, n := range s.Followers {
				out, err := n.Host.Run(ctx, "ip", "-4", "-br", "addr")
				if err != nil {
					return err
				}
				if has := strings.Contains(out, address+"/"); has != (n == want) {
					return fmt.Errorf("%s: %v", n.Name(), has)
				}
			}
			return nil
		})
	}
	unitOf := func(name string, ok func(stream.Status) bool, what string) {
		t.Helper()
		within(t, patience, name+" "+what, func(ctx context.Context) error {
			all, err := followers(ctx, one)
			if err != nil {
				return err
			}
			for _, u := range all {
				if u.Unit == name && ok(u) {
					return nil
				}
			}
			return fmt.Errorf("%+v", all)
		})
	}
	streams := func(u stream.Status) bool { return u.Connected && u.Confirmed && !u.FromDisk }
	unitOf("net", streams, "follows core")
	unitOf("dns", streams, "follows core")
	holds(plain, one, "at first")
	holds(fenced, one, "at first, under a lease that core writes") // the other writes its by way of a server
	maintain := func(on bool) {
		t.Helper()
		within(t, patience, "the node's maintenance is written", func(ctx context.Context) error {
			_, err := one.Do(ctx, "PUT", fmt.Sprintf("/v1/agent/maintenance?enable=%v&reason=kernel", on), nil)
			return err
		})
	}
	maintain(true)
	holds(plain, two, "while the first is drained")
	within(t, patience, "the drain is on the unit's disk", func(context.Context) error {
		text, err := one.Host.Read("/var/lib/holdfast/state.net")
		if err == nil && !strings.Contains(string(text), "_node_maintenance") {
			err = fmt.Errorf("%d bytes without it", len(text))
		}
		return err
	})
	// Its core dies, and it starts anew: what it knows is the disk's.
	if err := core.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := net.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := net.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	net = unit("net")
	unitOf("net", func(u stream.Status) bool { return u.FromDisk && u.Confirmed && !u.Connected && u.Age > time.Second }, "starts from its disk and says the age")
	within(t, patience, "it stands back, without core", func(ctx context.Context) error {
		out, err := one.CLI(ctx, "vip", "show", "front")
		if err == nil && !strings.Contains(strings.ToLower(out), "yield") && !strings.Contains(strings.ToLower(out), "stand") {
			err = fmt.Errorf("it says %s", out)
		}
		return err
	})
	holds(plain, two, "while the first, without core, is drained still")
	core = unit("core")
	unitOf("net", streams, "follows core again")
	maintain(false)
	holds(plain, one, "when the drain has ended")
	if err := core.Kill(); err != nil {
		t.Fatal(err)
	}
	stop := asking(t, machine, s, one, "apt.service.virtual")
	unitOf("net", func(u stream.Status) bool { return !u.Connected && u.Age > 3*time.Second }, "has no core for some seconds")
	if asked, failed, last := stop(); failed > 0 || asked == 0 {
		t.Errorf("without core %d of %d look-ups failed, the last with %v", failed, asked, last)
	}
	holds(plain, one, "without core")
	holds(fenced, two, "since the first can't renew its lease without core")
	// What the API is asked about the addresses, core asks of net.
	unit("core")
	within(t, patience, "core answers for net's addresses", func(ctx context.Context) error {
		out, err := one.Do(ctx, "GET", "/v1/holdfast/vip/list", nil)
		if err == nil && !strings.Contains(string(out), "10.1.0.100") {
			err = fmt.Errorf("it says %s", out)
		}
		return err
	})
	if err := net.Kill(); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "core says that net is gone", func(ctx context.Context) error {
		_, err := one.Do(ctx, "GET", "/v1/holdfast/vip/list", nil)
		if err == nil || !strings.Contains(err.Error(), "the unit net does not answer") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
}

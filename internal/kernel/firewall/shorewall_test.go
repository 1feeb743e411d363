package firewall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/attempts"
)

// watchedEvery is how often lb has the rules looked at.
const watchedEvery = 3 * time.Second

// shorewallFiles are a site's that lets nothing in and only ping out: what goes
// through the address goes by our rules.
func shorewallFiles() map[string]string {
	return map[string]string{
		"zones":      "fw firewall\nnet ipv4\n",
		"interfaces": "?FORMAT 2\nnet eth0 tcpflags,nosmurfs\n",
		"policy":     "all all DROP\n",
		"rules":      "?SECTION NEW\nPing/ACCEPT all all\n",
		"conntrack":  "",
		"started":    "test ! -e /etc/holdfast.rules || iptables-restore --noflush /etc/holdfast.rules\n",
	}
}

// Debian's Shorewall on the host of the address, with either kind of iptables.
// Its restart throws all rules of iptables away.
func TestBesideShorewall(t *testing.T) {
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) { besideShorewall(t, kind) })
	}
}

func besideShorewall(t *testing.T, kind string) {
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	b := &bed{mode: IPTables, rules: Rules{Untracked: []Endpoint{{TCP, netip.MustParseAddrPort(virtual)}}}}
	b.client, b.director = addHost(t, l, "client", "10.1.0.9/24"), addHost(t, l, "f1", "10.1.0.1/24", "10.1.0.100/32")
	b.echo(t)
	b.open(t)
	for name, text := range shorewallFiles() {
		b.write(t, "/etc/shorewall/"+name, text)
	}
	// Of both the host's programs and those that the test itself starts.
	kinds := t.TempDir()
	t.Setenv("PATH", kinds+":"+os.Getenv("PATH"))
	for _, family := range []string{"iptables", "ip6tables"} {
		b.run(t, "update-alternatives", "--set", family, "/usr/sbin/"+family+"-"+kind)
		for _, what := range []string{"", "-restore", "-save"} {
			if err := os.Symlink("/usr/sbin/"+family+"-"+kind+what, filepath.Join(kinds, family+what)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if version := b.run(t, "iptables", "-V"); !strings.Contains(version, map[string]string{"nft": "nf_tables", "legacy": "legacy"}[kind]) {
		t.Fatalf("iptables is %s", version)
	}
	b.run(t, "shorewall", "restart")
	if err := b.login(dropped); err == nil {
		t.Fatal("a log-in works without our rules: this Shorewall proves nothing")
	}
	t.Run("rules that Shorewall loads", b.testPrinted)
	t.Run("rules that are watched", b.testWatched)
	if kind == "nft" {
		t.Run("our table of nftables", b.testOtherTable)
	}
}

// testOtherTable: what Shorewall throws away are the tables of iptables.
func (b *bed) testOtherTable(t *testing.T) {
	b.mode = NFTables
	b.open(t)
	if changes := b.set(t, b.rules); len(changes) != 1 {
		t.Errorf("changes %v", changes)
	}
	b.run(t, "shorewall", "restart")
	if changes := b.set(t, b.rules); len(changes) != 0 {
		t.Errorf("a restart of Shorewall touched our table: %v", changes)
	}
}

// testPrinted has Shorewall load what `holdfast lb firewall` prints, as a site
// does that wants no other program to change its rules.
func (b *bed) testPrinted(t *testing.T) {
	text, err := Text(IPTables, b.rules)
	if err != nil {
		t.Fatal(err)
	}
	b.write(t, "/etc/holdfast.rules", text)
	for range 2 {
		b.run(t, "shorewall", "restart")
		if err := b.login(passed); err != nil {
			t.Errorf("a log-in does not work with what was printed: %v\n%s", err, b.listing(t))
		}
	}
	b.run(t, "rm", "/etc/holdfast.rules")
	b.run(t, "shorewall", "restart")
	if err := b.login(dropped); err == nil {
		t.Error("a log-in works after the rules are gone")
	}
}

// testWatched restarts Shorewall while people are there and others come.
func (b *bed) testWatched(t *testing.T) {
	b.set(t, b.rules)
	var people []net.Conn
	for range 6 {
		people = append(people, b.session(t))
	}
	b.run(t, "shorewall", "restart")
	if err := b.login(dropped); err == nil {
		t.Error("a log-in works after a restart: our rules are not what lets it through")
	}
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { b.watch(ctx, t) })
	defer watching.Wait()
	defer stop()
	tries := attempts.Start(ctx, 50*time.Millisecond, func(int) error { return b.login(dropped) })
	defer tries.Stop()
	b.await(t, tries)
	for range 2 {
		b.run(t, "shorewall", "restart")
		restarted := time.Now()
		for i, conn := range people {
			if err := talk(conn); err != nil {
				t.Errorf("session %d: %v", i, err)
			}
		}
		works := b.await(t, tries)
		_, failed := tries.Count()
		t.Logf("others come in %v after the restart; %d could not so far", max(0, works.Sub(restarted)), failed)
	}
}

// watch puts the rules back as lb does. What fails beside a restart that is under
// way, lb tries again; it must not fail then.
func (b *bed) watch(ctx context.Context, t *testing.T) {
	tick := time.NewTicker(watchedEvery)
	defer tick.Stop()
	for failed := error(nil); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := b.director.Do(func() error {
			_, err := b.firewall.Set(b.rules)
			return err
		})
		if err != nil && failed != nil && ctx.Err() == nil {
			t.Errorf("put the rules back: %v, and before: %v", err, failed)
		}
		failed = err
	}
}

// await waits until log-ins work for a second.
func (b *bed) await(t *testing.T, tries *attempts.Series) time.Time {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); ; <-tick.C {
		works, err := tries.Works(time.Second)
		if err == nil {
			return works
		}
		if time.Now().After(deadline) {
			t.Fatalf("our rules are not put back: %v\n%s", err, b.listing(t))
		}
	}
}

// echo answers with a banner, and then with what it is told.
func (b *bed) echo(t *testing.T) {
	t.Helper()
	l, err := b.director.Listen("tcp", "0.0.0.0:22")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, "!")
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
}

// session is somebody who stays.
func (b *bed) session(t *testing.T) (conn net.Conn) {
	t.Helper()
	err := b.client.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: passed}).Dial("tcp4", virtual)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(passed))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// talk proves that a session lives.
func talk(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "there?"); err != nil {
		return err
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != "there?" {
		return errors.New("it says " + string(got))
	}
	return nil
}

func (b *bed) write(t *testing.T, path, text string) {
	t.Helper()
	if err := b.director.Write(path, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func (b *bed) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := b.director.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(fmt.Errorf("%v: %w\n%s", args, err, out))
	}
	return out
}

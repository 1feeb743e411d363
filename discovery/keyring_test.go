package discovery

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/state"
	"holdfast/lab/stall"
)

func TestKeysChangeWithoutAnybodyFailing(t *testing.T) {
	t.Parallel()
	machine := stall.Test(t, "")
	b := newBed(t)
	hosts := b.servers(3)
	old := base64.StdEncoding.EncodeToString(hosts[0].config.Key)
	next := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{9}, KeySize))
	type status = state.KeyringStatus
	use := func(h *host) (status, error) {
		return asked(t, machine, func() (status, error) { return h.UseKey(t.Context(), next) })
	}
	remove := func(h *host) (status, error) {
		return asked(t, machine, func() (status, error) { return h.RemoveKey(t.Context(), old) })
	}
	if _, err := use(hosts[0]); err == nil || !strings.Contains(err.Error(), "install it first") {
		t.Errorf("use before it is installed: %v", err)
	}
	if _, err := hosts[0].InstallKey(t.Context(), "short"); err == nil || strings.Contains(err.Error(), "short") {
		t.Errorf("a key that is none: %v", err)
	}
	if _, err := asked(t, machine, func() (status, error) { return hosts[0].InstallKey(t.Context(), next) }); err != nil {
		t.Fatal(err)
	}
	if _, err := remove(hosts[0]); err == nil || !strings.Contains(err.Error(), "use another first") {
		t.Errorf("removed the key in use: %v", err)
	}
	if _, err := use(hosts[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := remove(hosts[2]); err != nil {
		t.Fatal(err)
	}
	listed, err := asked(t, machine, func() (status, error) { return hosts[0].ListKeys(t.Context()) })
	if err != nil || listed.Nodes != 3 || listed.Keys[next] != 3 || listed.Primary[next] != 3 || len(listed.Keys) != 1 {
		t.Errorf("%+v %v", listed, err)
	}
	for _, h := range hosts {
		for _, other := range hosts {
			h.awaitMember(other.config.Node, state.Alive)
		}
		info, err := os.Stat(filepath.Join(h.config.DataDir, keyringFile))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", h.config.Node, info, err)
		}
	}

	// A node that knows the old key alone is turned away, and counted.
	stranger := b.config(4)
	before := refusedKeys(hosts[:3])
	late := b.start(stranger)
	eventually(t, "the old key is refused", func() bool { return refusedKeys(hosts[:3]) > before })
	if m, ok := hosts[0].store.Snapshot().Member("fbservice4"); ok {
		t.Errorf("a node with the old key came in: %+v", m)
	}
	late.stop()

	// One that was there keeps what it learned over a restart.
	config := hosts[2].config
	hosts[2].stop()
	hosts[0].awaitMember(config.Node, state.Failed)
	if again := b.start(config); again != nil {
		hosts[0].awaitMember(config.Node, state.Alive)
	}
}

// asked repeats, as an admin does, what a member did not answer in time because
// the machine stood still for a second or more of the three that it has. A member
// that does not answer otherwise is an error.
func asked(t *testing.T, machine *stall.Watch, ask func() (state.KeyringStatus, error)) (status state.KeyringStatus, err error) {
	t.Helper()
	for try := 1; ; try++ {
		from := time.Now()
		status, err = ask()
		stood := machine.Within(from, time.Now())
		if err == nil || try == 5 || stood < time.Second || !strings.Contains(err.Error(), "nodes reported success") {
			return status, err
		}
		t.Logf("asked again: %v, and the machine stood still for %v meanwhile", err, stood)
	}
}

// A machine that stands still for a second has not lost its keys. It would fail if
// the time to answer were counted in our intervals as in Serf's.
func TestMembersHaveSecondsToAnswerAboutKeys(t *testing.T) {
	t.Parallel()
	h := newBed(t).servers(1)[0]
	if limit := h.gossip.Load().serf.DefaultQueryTimeout(); limit < 3*time.Second || limit > 10*time.Second {
		t.Errorf("they have %v, want about 3 s", limit)
	}
}

func refusedKeys(hosts []*host) float64 {
	total := 0.0
	for _, h := range hosts {
		total += testutil.ToFloat64(h.metrics.refused.WithLabelValues(string(refusedKey)))
	}
	return total
}

func TestHalfAKeyringFileIsNoEnd(t *testing.T) {
	dir := t.TempDir()
	key := bytes.Repeat([]byte{1}, KeySize)
	whole := `["` + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{2}, KeySize)) + `"]`
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ring, err := loadKeyring(dir, key)
	if err != nil || !bytes.Equal(ring.GetPrimaryKey(), key) {
		t.Errorf("without a file: %v", err)
	}
	write(keyringFile, whole)
	if err := copyKeyring(dir); err != nil {
		t.Fatal(err)
	}
	write(keyringFile, whole[:10])
	if err := copyKeyring(dir); err != nil {
		t.Fatal(err)
	}
	ring, err = loadKeyring(dir, key)
	if err != nil || ring.GetPrimaryKey()[0] != 2 {
		t.Errorf("half a file: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, keyringCopy)); err != nil {
		t.Fatal(err)
	}
	if _, err := loadKeyring(dir, key); err == nil || !strings.Contains(err.Error(), "restore the file") {
		t.Errorf("half a file and no copy: %v", err)
	}
	if ring, err := loadKeyring(dir, nil); ring != nil || err != nil {
		t.Errorf("a gossip in plain text: %v %v", ring, err)
	}
}

func FuzzParseKeyring(f *testing.F) {
	f.Add([]byte(`["` + base64.StdEncoding.EncodeToString(make([]byte, KeySize)) + `"]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseKeyring(text)
		if err == nil && (len(keys) == 0 || len(keys[0]) != KeySize) {
			t.Fatalf("%q", text)
		}
	})
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/state"
)

// testKeyring changes the gossip key of the running node, as an admin does.
func (n *node) testKeyring(t *testing.T) {
	old := onlyKey(t, n)
	out, status := n.run(t, "", "keyring", "install")
	fresh, _, _ := strings.Cut(out, "\n")
	if status != exitOK || len(fresh) != 16 || fresh == old {
		t.Fatalf("keyring install: status %d: %s", status, out)
	}
	n.expect(t, exitOK, old+"  1/1      1/1\n"+fresh+"  1/1      0/1", "keyring", "list")
	n.expect(t, exitFailed, "encrypt with it", "keyring", "remove", old)
	n.expect(t, exitOK, "all members encrypt with it", "keyring", "use", fresh[:10])
	n.expect(t, exitOK, "no member holds it", "keyring", "remove", old)
	if now := onlyKey(t, n); now != fresh {
		t.Errorf("the members hold %s, want %s alone", now, fresh)
	}
	n.expect(t, exitNotFound, "keyring list", "keyring", "use", old)
	n.expect(t, exitNotFound, "no member holds", "keyring", "use", "")
	if out, status := n.run(t, "c2hvcnQ=\n", "keyring", "install", "-"); status != exitUsage || !strings.Contains(out, "32 bytes") {
		t.Errorf("a short key: status %d: %s", status, out)
	}
}

// onlyKey is the name of the one key that the members hold.
func onlyKey(t *testing.T, n *node) string {
	t.Helper()
	out, status := n.run(t, "", "keyring", "list")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if status != exitOK || len(lines) != 2 {
		t.Fatalf("keyring list: status %d: %s", status, out)
	}
	return strings.Fields(lines[1])[0]
}

func TestKeyringListDoesNotGiveTheKeysAway(t *testing.T) {
	const secret = "Yi9yb3V0ZXItbm90LWEtcmVhbC1rZXktYXQtYWxsLiE="
	for _, key := range gossipKeys(state.KeyringStatus{Nodes: 3, Keys: map[string]int{secret: 3}, Primary: map[string]int{secret: 2}}) {
		if strings.Contains(secret, key.ID) || key.Held != 3 || key.Used != 2 || key.Members != 3 {
			t.Errorf("%+v", key)
		}
	}
}

func TestKeyringInstallReadsAKeyFromAFile(t *testing.T) {
	const key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	install := keyringInstallCmd{File: path}
	if got, err := install.key(nil); got != key || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

package discovery

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestGossipKeysAreThoseInUse(t *testing.T) {
	dir := t.TempDir()
	first, second := bytes.Repeat([]byte{1}, KeySize), bytes.Repeat([]byte{2}, KeySize)
	if keys, err := GossipKeys(dir, nil); keys != nil || err != nil {
		t.Errorf("plain text: %v, %v", keys, err)
	}
	if keys, err := GossipKeys(dir, first); err != nil || len(keys) != 1 || !bytes.Equal(keys[0], first) {
		t.Errorf("keys that were never changed: %v, %v", keys, err)
	}
	text, err := json.Marshal([]string{base64.StdEncoding.EncodeToString(second), base64.StdEncoding.EncodeToString(first)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, keyringFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if keys, err := GossipKeys(dir, first); err != nil || len(keys) != 2 || !bytes.Equal(keys[0], second) {
		t.Errorf("after another came into use: %v, %v", keys, err)
	}
	if err := os.WriteFile(filepath.Join(dir, keyringFile), text[:9], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := GossipKeys(dir, first); err == nil {
		t.Error("half a keyring counts as the configured key, which may be the one that was leaked")
	}
}

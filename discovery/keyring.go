package discovery

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"holdfast/internal/durable"
	"holdfast/internal/state"
)

// keyringFile keeps the gossip keys when they were changed while the cluster
// ran: a JSON list of base64, the one that encrypts first. From then on the key
// of the PKI directory is the one that a new node is given, nothing more.
const keyringFile = "gossip.keyring"

// keyringCopy is the latest keyringFile that could be read. Serf writes the
// file in place, so that a power cut may leave half of it.
const keyringCopy = "gossip.keyring.last"

// loadKeyring reads the keys of the data directory or, when there are none,
// takes the configuration's. nil: the gossip is not encrypted.
func loadKeyring(dir string, configured []byte) (*memberlist.Keyring, error) {
	if len(configured) == 0 {
		return nil, nil
	}
	path := filepath.Join(dir, keyringFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return memberlist.NewKeyring(nil, configured)
	}
	if err != nil {
		return nil, fmt.Errorf("the gossip's keys: %w", err)
	}
	keys, err := parseKeyring(text)
	if err != nil {
		if saved, unread := os.ReadFile(filepath.Join(dir, keyringCopy)); unread == nil {
			if old, damaged := parseKeyring(saved); damaged == nil {
				return memberlist.NewKeyring(old, old[0])
			}
		}
		return nil, fmt.Errorf("the gossip's keys: %s: %w; restore the file, or remove it to begin with the key of the PKI directory", path, err)
	}
	return memberlist.NewKeyring(keys, keys[0])
}

func parseKeyring(text []byte) ([][]byte, error) {
	var encoded []string
	if err := json.Unmarshal(text, &encoded); err != nil {
		return nil, fmt.Errorf("want a JSON list of keys: %w", err)
	}
	var keys [][]byte
	for n, one := range encoded {
		key, err := parseKey(one)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", n+1, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return keys, nil
}

// copyKeyring keeps keyringCopy up to date.
func copyKeyring(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, keyringFile))
	if err != nil {
		return nil // the keys were never changed
	}
	if _, err := parseKeyring(text); err != nil {
		return nil // being written
	}
	if had, err := os.ReadFile(filepath.Join(dir, keyringCopy)); err == nil && bytes.Equal(had, text) {
		return nil
	}
	return durable.Replace(filepath.Join(dir, keyringCopy), text, 0o600)
}

// parseKey reads a key; the error does not hold it.
func parseKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) != KeySize {
		return nil, fmt.Errorf("want the base64 of %d bytes, such as 'openssl rand -base64 %d' makes", KeySize, KeySize)
	}
	return key, nil
}

// ListKeys asks every living member which gossip keys it holds.
func (a *Agent) ListKeys(ctx context.Context) (state.KeyringStatus, error) {
	return a.askKeys(ctx, "list the gossip keys", func(m *serf.KeyManager) (*serf.KeyResponse, error) { return m.ListKeys() })
}

// InstallKey gives a key (base64 of KeySize bytes) to every living member: from
// then on they understand it. It encrypts nothing before UseKey.
func (a *Agent) InstallKey(ctx context.Context, key string) (state.KeyringStatus, error) {
	if _, err := parseKey(key); err != nil {
		return state.KeyringStatus{}, fmt.Errorf("discovery: install a gossip key: %w: %w", state.ErrInvalid, err)
	}
	return a.askKeys(ctx, "install a gossip key", func(m *serf.KeyManager) (*serf.KeyResponse, error) { return m.InstallKey(key) })
}

// UseKey has every living member encrypt with a key that all of them hold. It
// is refused while one does not: that one would hear nobody.
func (a *Agent) UseKey(ctx context.Context, key string) (state.KeyringStatus, error) {
	held, err := a.ListKeys(ctx)
	if err != nil {
		return held, err
	}
	if n := held.Keys[key]; n < held.Nodes || n == 0 {
		return held, fmt.Errorf("discovery: use a gossip key: %w: %d of %d members hold it; install it first", state.ErrInvalid, n, held.Nodes)
	}
	return a.askKeys(ctx, "use a gossip key", func(m *serf.KeyManager) (*serf.KeyResponse, error) { return m.UseKey(key) })
}

// RemoveKey takes a key from every living member. It is refused while one of
// them encrypts with it.
func (a *Agent) RemoveKey(ctx context.Context, key string) (state.KeyringStatus, error) {
	held, err := a.ListKeys(ctx)
	if err != nil {
		return held, err
	}
	if n := held.Primary[key]; n > 0 {
		return held, fmt.Errorf("discovery: remove a gossip key: %w: %d members encrypt with it; use another first", state.ErrInvalid, n)
	}
	return a.askKeys(ctx, "remove a gossip key", func(m *serf.KeyManager) (*serf.KeyResponse, error) { return m.RemoveKey(key) })
}

// askKeys asks all members. An error tells who did not answer or did not do it;
// those who did have done it.
func (a *Agent) askKeys(ctx context.Context, what string, ask func(*serf.KeyManager) (*serf.KeyResponse, error)) (state.KeyringStatus, error) {
	if len(a.config.Key) == 0 {
		return state.KeyringStatus{}, fmt.Errorf("discovery: %s: %w: the gossip is not encrypted", what, state.ErrInvalid)
	}
	status, err := withGossip(ctx, a, func(g *gossip) (status state.KeyringStatus, err error) {
		answer, err := ask(g.serf.KeyManager())
		if answer != nil {
			status = state.KeyringStatus{Nodes: answer.NumNodes, Keys: answer.Keys, Primary: answer.PrimaryKeys, Failed: answer.Messages}
		}
		return status, err
	})
	if ctx.Err() != nil {
		return state.KeyringStatus{}, fmt.Errorf("discovery: %s: %w", what, ctx.Err())
	}
	if err != nil {
		return status, fmt.Errorf("discovery: %s: %w: %s", what, err, failures(status.Failed))
	}
	return status, nil
}

func failures(by map[string]string) string {
	var list []string
	for node, why := range by {
		list = append(list, node+": "+why)
	}
	slices.Sort(list)
	var text bytes.Buffer
	for i, one := range list {
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(one)
	}
	return text.String()
}

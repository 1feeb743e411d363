package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/api"
	"holdfast/discovery"
	"holdfast/internal/state"
)

type keyringCmd struct {
	List    keyringListCmd    `cmd:"" help:"List the gossip's keys: how many members hold each, how many encrypt with it."`
	Install keyringInstallCmd `cmd:"" help:"Give a new key to all living members."`
	Use     keyringUseCmd     `cmd:"" help:"Have all members encrypt with a key that all of them hold."`
	Remove  keyringRemoveCmd  `cmd:"" help:"Take a key that nobody encrypts with from all members."`
}

// gossipKey is a key as it is shown: whoever has the key itself can claim to
// be any node, so it is neither printed nor typed.
type gossipKey struct {
	ID      string `json:"id"`
	Held    int    `json:"held_by"`
	Used    int    `json:"used_by"`
	Members int    `json:"members"`
}

// keyID names a key without giving it away: the first 64 bits of its SHA-256.
func keyID(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:8])
}

// gossipKeys are the keys that the members hold, the one in use first.
func gossipKeys(status state.KeyringStatus) []gossipKey {
	keys := make([]gossipKey, 0, len(status.Keys))
	for key, held := range status.Keys {
		keys = append(keys, gossipKey{keyID(key), held, status.Primary[key], status.Nodes})
	}
	slices.SortFunc(keys, func(a, b gossipKey) int {
		if a.Used != b.Used {
			return b.Used - a.Used
		}
		return strings.Compare(a.ID, b.ID)
	})
	return keys
}

type keyringListCmd struct{ connection }

func (*keyringListCmd) Help() string {
	return "Example: holdfast keyring list\n\nKeys are named by the first digits of their SHA-256; the keys themselves are not shown."
}

func (c *keyringListCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		status, err := client.Keyring(con.ctx)
		if err != nil {
			return err
		}
		keys := gossipKeys(status)
		if c.JSON {
			return con.json(keys)
		}
		rows := make([][]string, 0, len(keys))
		for _, k := range keys {
			rows = append(rows, []string{k.ID, fmt.Sprintf("%d/%d", k.Held, k.Members), fmt.Sprintf("%d/%d", k.Used, k.Members)})
		}
		return con.table([]string{"KEY", "HELD BY", "USED BY"}, rows)
	})
}

type keyringInstallCmd struct {
	connection
	File string `arg:"" optional:"" help:"File with the key, as openssl rand -base64 32 makes it; - for standard input. A new key is made unless said." placeholder:"FILE"`
}

func (*keyringInstallCmd) Help() string {
	return "Examples:\n" +
		"  holdfast keyring install                    # makes a key, and prints its name\n" +
		"  openssl rand -base64 32 | holdfast keyring install -\n\n" +
		"To change the key: install, use, and remove the old one. A node that is down meanwhile must be given the new one: holdfast join --again."
}

func (c *keyringInstallCmd) Run(con *console) error {
	key, err := c.key(con.in)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("keyring install: %w", err)}
	}
	return c.ask(func(client *api.Client) error {
		if err := client.InstallKey(con.ctx, key); err != nil {
			return err
		}
		if c.JSON {
			return con.json(map[string]string{"id": keyID(key)})
		}
		_, err := fmt.Fprintf(con.out, "%s\nall members hold it; next: holdfast keyring use %[1]s\n", keyID(key))
		return err
	})
}

// maxKeyFile is far more than a key and its line's end.
const maxKeyFile = 1 << 10

func (c *keyringInstallCmd) key(stdin io.Reader) (string, error) {
	if c.File == "" {
		key := make([]byte, discovery.KeySize)
		_, _ = rand.Read(key) // never fails
		return base64.StdEncoding.EncodeToString(key), nil
	}
	from := stdin
	if c.File != "-" {
		file, err := os.Open(filepath.Clean(c.File))
		if err != nil {
			return "", err
		}
		defer file.Close()
		from = file
	}
	text, err := io.ReadAll(io.LimitReader(from, maxKeyFile))
	if err != nil {
		return "", err
	}
	key := strings.TrimSpace(string(text))
	if raw, err := base64.StdEncoding.DecodeString(key); err != nil || len(raw) != discovery.KeySize {
		return "", fmt.Errorf("%s: want the base64 of %d bytes, as 'openssl rand -base64 %[2]d' makes it", c.File, discovery.KeySize)
	}
	return key, nil
}

// namedKey is a command about a key that the members hold.
type namedKey struct {
	connection
	ID string `arg:"" name:"key" help:"The key by its name, as list prints it; its first digits will do."`
}

// carryOut finds the key by its name and does what is asked with it.
func (c *namedKey) carryOut(con *console, said string, do func(*api.Client, string) error) error {
	return c.ask(func(client *api.Client) error {
		status, err := client.Keyring(con.ctx)
		if err != nil {
			return err
		}
		key, err := c.find(status)
		if err != nil {
			return err
		}
		if err := do(client, key); err != nil {
			return err
		}
		return con.done(c.JSON, said)
	})
}

func (c *namedKey) find(status state.KeyringStatus) (string, error) {
	var found []string
	for key := range status.Keys {
		if c.ID != "" && strings.HasPrefix(keyID(key), strings.ToLower(c.ID)) {
			found = append(found, key)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", &exitError{exitNotFound, fmt.Errorf("no member holds a key %q: holdfast keyring list", c.ID)}
	}
	return "", &exitError{exitUsage, errors.New("several keys begin with " + c.ID + ": give more digits")}
}

type keyringUseCmd struct{ namedKey }

func (*keyringUseCmd) Help() string {
	return "Example: holdfast keyring use 5f2c0a9e11d2b7c4\n\nRefused while a living member does not hold it: that one would hear nobody."
}

func (c *keyringUseCmd) Run(con *console) error {
	return c.carryOut(con, "all members encrypt with it", func(client *api.Client, key string) error { return client.UseKey(con.ctx, key) })
}

type keyringRemoveCmd struct{ namedKey }

func (*keyringRemoveCmd) Help() string {
	return "Example: holdfast keyring remove 5f2c0a9e11d2b7c4\n\nRefused while a member encrypts with it."
}

func (c *keyringRemoveCmd) Run(con *console) error {
	return c.carryOut(con, "no member holds it any more", func(client *api.Client, key string) error { return client.RemoveKey(con.ctx, key) })
}

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"holdfast/internal/state"
)

const keyringPath = "/v1/operator/keyring"

// Keyring asks every living member which gossip keys it holds. The answer
// holds the keys themselves, in base64.
func (c *Client) Keyring(ctx context.Context) (state.KeyringStatus, error) {
	var found []keyringJSON
	if err := c.ask(ctx, http.MethodGet, keyringPath, nil, nil, &found); err != nil {
		return state.KeyringStatus{}, err
	}
	if len(found) != 1 {
		return state.KeyringStatus{}, fmt.Errorf("GET %s: the answer tells of %d gossip pools, want one", keyringPath, len(found))
	}
	one := found[0]
	return state.KeyringStatus{Nodes: one.NumNodes, Keys: one.Keys, Primary: one.PrimaryKeys, Failed: one.Messages}, nil
}

// InstallKey gives a gossip key, base64 of 32 bytes, to every living member.
func (c *Client) InstallKey(ctx context.Context, key string) error {
	return c.changeKey(ctx, http.MethodPost, key)
}

// UseKey has every living member encrypt with a key that all of them hold.
func (c *Client) UseKey(ctx context.Context, key string) error {
	return c.changeKey(ctx, http.MethodPut, key)
}

// RemoveKey takes a key that nobody encrypts with from every living member.
func (c *Client) RemoveKey(ctx context.Context, key string) error {
	return c.changeKey(ctx, http.MethodDelete, key)
}

func (c *Client) changeKey(ctx context.Context, method, key string) error {
	body, err := json.Marshal(map[string]string{"Key": key})
	if err != nil {
		return err
	}
	return c.ask(ctx, method, keyringPath, nil, bytes.NewReader(body), nil)
}

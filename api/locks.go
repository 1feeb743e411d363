package api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"strconv"
	"time"
)

// SessionOptions are what a new session is made of.
type SessionOptions struct {
	Name      string
	TTL       time.Duration
	LockDelay time.Duration
}

// SessionCreate makes a session that stands on the agent's node and returns its
// ID.
func (c *Client) SessionCreate(ctx context.Context, options SessionOptions) (string, error) {
	body, err := json.Marshal(map[string]string{
		"Name": options.Name, "TTL": options.TTL.String(), "LockDelay": options.LockDelay.String(), "Behavior": "release",
	})
	if err != nil {
		return "", err
	}
	var made struct{ ID string }
	err = c.ask(ctx, "PUT", "/v1/session/create", nil, bytes.NewReader(body), &made)
	return made.ID, err
}

// SessionRenew keeps a session for another TTL; NotFound knows the error when it
// is gone.
func (c *Client) SessionRenew(ctx context.Context, id string) error {
	return c.ask(ctx, "PUT", "/v1/session/renew/"+url.PathEscape(id), nil, nil, nil)
}

// SessionDestroy ends a session. Its keys come under its lock-delay: release
// them before.
func (c *Client) SessionDestroy(ctx context.Context, id string) error {
	return c.ask(ctx, "PUT", "/v1/session/destroy/"+url.PathEscape(id), nil, nil, nil)
}

// Acquire makes a key the session's, with a value; false when another session
// has it or had it until now (lock-delay).
func (c *Client) Acquire(ctx context.Context, key, session string, value []byte) (done bool, err error) {
	err = c.ask(ctx, "PUT", KeyPath(key), url.Values{"acquire": {session}}, bytes.NewReader(value), &done)
	return done, err
}

// Release frees a key; false when the session does not hold it.
func (c *Client) Release(ctx context.Context, key, session string) (done bool, err error) {
	err = c.ask(ctx, "PUT", KeyPath(key), url.Values{"release": {session}}, nil, &done)
	return done, err
}

// Holding is who has a key, and since which index of the log.
type Holding struct {
	Session string // "": nobody
	Value   []byte
	Index   uint64 // of the key's last change; a fencing token just after Acquire
}

// Holder looks who has a key, or waits until that is another index than after
// (0: at once), for so long. A key that is not there is held by nobody.
func (c *Client) Holder(ctx context.Context, key string, after uint64, wait time.Duration) (Holding, error) {
	args := url.Values{"consistent": {""}}
	if after > 0 {
		args.Set("index", strconv.FormatUint(after, 10))
		args.Set("wait", wait.String())
	}
	var found []entryJSON
	err := c.ask(ctx, "GET", KeyPath(key), args, nil, &found)
	if NotFound(err) || err == nil && len(found) == 0 {
		return Holding{}, nil
	}
	if err != nil {
		return Holding{}, err
	}
	return Holding{Session: found[0].Session, Value: found[0].Value, Index: found[0].ModifyIndex}, nil
}

package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"holdfast/internal/peer"
)

// Joining is a bare node that asks a server to let it in.
type Joining struct {
	Server string // "https://fbservice1:8501"
	Node   string
	Token  string     // what FormatJoinToken made
	Bind   netip.Addr // the address to ask from; zero: the kernel chooses
}

// ErrOtherAuthority: the cluster does not have the authority that the token is
// of: it is another cluster, or has changed its authority since.
var ErrOtherAuthority = errors.New("is not of the cluster that made the token, or that has dropped the token's authority since (then make a new token)")

// maxJoinAnswer bounds an answer, which holds the cluster file.
const maxJoinAnswer = 16 << 20

// Ask has a key made and certified. It first fetches the certificates of the
// cluster's authorities, from whom it cannot know, and goes on only when the one
// of the token's fingerprint is among them; the secret is sent only to a server
// of that authority, or of one that it vouches for. An *Error is a server's
// refusal.
func (j Joining) Ask(ctx context.Context) (*peer.Joining, JoinAnswer, error) {
	secret, fingerprint, err := ParseJoinToken(j.Token)
	if err != nil {
		return nil, JoinAnswer{}, err
	}
	trust, err := j.authority(ctx, fingerprint)
	if err != nil {
		return nil, JoinAnswer{}, err
	}
	own, err := peer.NewJoining()
	if err != nil {
		return nil, JoinAnswer{}, err
	}
	body, err := json.Marshal(JoinRequest{Node: j.Node, Token: secret, Request: own.Request})
	if err != nil {
		return nil, JoinAnswer{}, err
	}
	text, err := j.request(ctx, trust, http.MethodPost, joinPath, body)
	if err != nil {
		return nil, JoinAnswer{}, err
	}
	var answer JoinAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, JoinAnswer{}, fmt.Errorf("%s: the answer: %w", j.Server, err)
	}
	sum := sha256.Sum256(answer.Config)
	switch {
	case !peer.Holds(answer.CA, fingerprint):
		return nil, JoinAnswer{}, fmt.Errorf("%s: the answer has another authority than the token", j.Server)
	case hex.EncodeToString(sum[:]) != answer.Sum:
		return nil, JoinAnswer{}, fmt.Errorf("%s: the cluster file did not come whole", j.Server)
	}
	return own, answer, nil
}

// authority fetches the certificates that the token speaks of, and trusts those.
func (j Joining) authority(ctx context.Context, fingerprint string) (*tls.Config, error) {
	anyone := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // what comes is compared with the fingerprint
	pem, err := j.request(ctx, anyone, http.MethodGet, joinCAPath, nil)
	if err != nil {
		return nil, err
	}
	trust, err := peer.JoinClient(pem, fingerprint)
	if err != nil {
		return nil, fmt.Errorf("%s %w: %w", j.Server, ErrOtherAuthority, err)
	}
	return trust, nil
}

// Knows tells whether the server is one that a node's certificates believe.
func (j Joining) Knows(ctx context.Context, trust *peer.Trust) bool {
	_, err := j.request(ctx, trust.Client(""), http.MethodGet, joinCAPath, nil)
	return err == nil
}

func (j Joining) request(ctx context.Context, trust *tls.Config, method, path string, body []byte) ([]byte, error) {
	base, err := url.Parse(j.Server)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("%q is no URL of a server: want https://HOST:8501", j.Server)
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	if j.Bind.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(j.Bind, 0))
	}
	transport := &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: trust, TLSHandshakeTimeout: dialTimeout, DisableKeepAlives: true}
	client := &http.Client{
		Transport: transport, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirected, which no agent does") },
	}
	request, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(j.Server, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, &UnreachableError{peer.Explain(err)}
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxJoinAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", j.Server, err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, &Error{Status: answer.StatusCode, Text: strings.TrimSpace(string(text))}
	}
	return text, nil
}

// JoinTokens lists the tokens that let bare nodes in.
func (c *Client) JoinTokens(ctx context.Context) ([]JoinToken, error) {
	var found []JoinToken
	err := c.ask(ctx, "GET", joinTokensPath, nil, nil, &found)
	return found, err
}

// MakeJoinToken makes one; its secret is shown this once.
func (c *Client) MakeJoinToken(ctx context.Context, wanted NewJoinToken) (MadeJoinToken, error) {
	var made MadeJoinToken
	body, err := json.Marshal(wanted)
	if err != nil {
		return made, err
	}
	err = c.ask(ctx, "POST", joinTokensPath, nil, bytes.NewReader(body), &made)
	return made, err
}

// DeleteJoinToken takes one back; nodes that came in with it stay.
func (c *Client) DeleteJoinToken(ctx context.Context, id string) error {
	return c.ask(ctx, "DELETE", joinTokensPath+"/"+url.PathEscape(id), nil, nil, nil)
}

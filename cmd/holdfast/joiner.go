package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"holdfast/api"
	"holdfast/cluster"
	"holdfast/discovery"
	"holdfast/internal/peer"
	"holdfast/internal/state"
)

// joiner lets bare nodes in: an agent with --join-authority has one.
type joiner struct {
	dir         string // of the authority
	pem         []byte
	fingerprint string
	source      *cluster.Source
	path        string // of the cluster file
	lastGood    string
	keys        func(context.Context) (state.KeyringStatus, error) // asks all members about theirs
}

// openJoiner is nil when bare nodes are not to be let in here.
func (c *agentCmd) openJoiner(base *foundation, members func() *discovery.Agent) (api.Joiner, error) {
	if c.JoinAuthority == "" {
		return nil, nil
	}
	if base.trust == nil || base.path == "" {
		return nil, &exitError{exitUsage, fmt.Errorf("--join-authority: needs a cluster file and certificates")}
	}
	pem, fingerprint, err := peer.AuthorityOf(c.JoinAuthority)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--join-authority: %w", err)}
	}
	if !peer.Believes(c.PKI, c.JoinAuthority) {
		return nil, &exitError{exitUsage, fmt.Errorf("--join-authority %s: is not the authority of this node's certificate in %s", c.JoinAuthority, c.PKI)}
	}
	return &joiner{dir: c.JoinAuthority, pem: pem, fingerprint: fingerprint, source: base.source, path: base.path, lastGood: c.lastGood(), keys: func(ctx context.Context) (state.KeyringStatus, error) { return members().ListKeys(ctx) }}, nil
}

// Authority is what the directory holds now: another while the authority is
// changed, and after it. What can't be read leaves what was there at the start.
func (j *joiner) Authority() (pem []byte, fingerprint string) {
	if pem, fingerprint, err := peer.AuthorityOf(j.dir); err == nil {
		return pem, fingerprint
	}
	return j.pem, j.fingerprint
}

func (j *joiner) Expand(nodes string) ([]string, error) {
	file := j.source.Current()
	names, err := file.Expand(nodes)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if file.Node(name) == nil {
			return nil, fmt.Errorf("the cluster file has no node %q", name)
		}
	}
	return names, nil
}

// Allow wants a node of the cluster file, which asks from an address of its own.
func (j *joiner) Allow(name string, from netip.Addr) error {
	file := j.source.Current()
	node := file.Node(name)
	if node == nil {
		return fmt.Errorf("the cluster file has no node %.64q", name)
	}
	if role := file.Role(node.Role); role == nil || !role.Agent {
		return fmt.Errorf("node %s has role %s, which runs no agent", name, node.Role)
	}
	for _, own := range node.Addresses {
		if own == from {
			return nil
		}
	}
	return fmt.Errorf("%s is no address of node %s in the cluster file", from, name)
}

// Join certifies the node's key for as long as "holdfast pki issue" does.
func (j *joiner) Join(ctx context.Context, name string, request []byte) (api.JoinAnswer, error) {
	file := j.source.Current()
	node := file.Node(name)
	if node == nil {
		return api.JoinAnswer{}, fmt.Errorf("%w: the cluster file has no node %.64q", api.ErrJoinRefused, name)
	}
	config, sum, err := j.config(file.Sum)
	if err != nil {
		return api.JoinAnswer{}, fmt.Errorf("%w: %w", api.ErrJoinLater, err)
	}
	signed, err := peer.Sign(j.dir, request, nodeRequest(file, *node, peer.DefaultValidity))
	if err != nil {
		return api.JoinAnswer{}, err
	}
	signed.GossipKey = j.gossipKey(ctx, signed.GossipKey)
	return api.JoinAnswer{Joined: signed, Config: config, Sum: sum}, nil
}

// gossipKey is the key that most members encrypt with, as a file has it. The
// authority's directory has the first one, and another may have come into use since;
// it is what the node is given when nobody answers. Members that say nothing keep
// none of the others' answers back. It blocks for as long as they have to answer.
func (j *joiner) gossipKey(ctx context.Context, first []byte) []byte {
	status, _ := j.keys(ctx) // an error is of those who did not answer
	most := 0
	for key, members := range status.Primary {
		if key != "" && members > most { // "": one that could not say
			most, first = members, []byte(key+"\n")
		}
	}
	return first
}

// config is the cluster file that this agent runs: the one at its place, or the
// copy of the last good one when that was changed and not reloaded yet.
func (j *joiner) config(running string) (data []byte, sum string, err error) {
	for _, path := range []string{j.path, j.lastGood} {
		data, err := os.ReadFile(filepath.Clean(path))
		if err != nil {
			continue
		}
		found := sha256.Sum256(data)
		if sum := hex.EncodeToString(found[:]); sum == running {
			return data, sum, nil
		}
	}
	return nil, "", fmt.Errorf("the cluster file of this server was changed and is not in force yet: holdfast config reload")
}

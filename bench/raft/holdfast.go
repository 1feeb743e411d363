package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// holdfast is three agents of the built program.
type holdfast struct {
	*setup
	dir   string
	nodes [nodes]*program
	http  [nodes]clients
}

func newHoldfast(s *setup) *holdfast { return &holdfast{setup: s} }

func (h *holdfast) name() string { return ours }

func (h *holdfast) start(ctx context.Context) (err error) {
	if h.dir, err = os.MkdirTemp(h.setup.dir, "holdfast"); err != nil {
		return err
	}
	var list []string
	for i := range nodes {
		list = append(list, fmt.Sprintf("  %s: {role: service, addresses: {main: %s}}\n", nodeName(i), address(1, i)))
	}
	file := filepath.Join(h.dir, "cluster.yaml")
	text := "schema: 1\ncluster: bench\ndomain: bench.example.com\nnetworks: {main: {prefix: 127.77.1.0/24}}\nroles: {service: {voters: 3}}\nnodes:\n" + strings.Join(list, "")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	for i := range nodes {
		dir := filepath.Join(h.dir, nodeName(i))
		h.nodes[i] = &program{log: dir + ".log", args: []string{
			h.binary, "agent", "--config", file, "--node", nodeName(i), "--data-dir", filepath.Join(dir, "data"), "--run-dir", filepath.Join(dir, "run"),
			"--pki", filepath.Join(h.pki, nodeName(i)), "--http-listen", address(1, i).String() + ":8500", "--log-level", "warn",
		}}
		h.http[i] = h.clients()
		if err := os.MkdirAll(filepath.Join(dir, "run"), 0o755); err != nil {
			return err
		}
		if err := h.nodes[i].start(); err != nil {
			return err
		}
	}
	return h.settled(ctx)
}

// settled waits until every node takes writes and has all that is committed.
func (h *holdfast) settled(ctx context.Context) error {
	for i := range nodes {
		err := until(ctx, nodeName(i)+" takes writes (see "+logs(h.dir)+")", func(ctx context.Context) error { return h.put(ctx, i, "settled", []byte("x")) })
		if err != nil {
			return err
		}
	}
	return until(ctx, "all nodes vote", func(ctx context.Context) error {
		servers, err := h.configuration(ctx, 0)
		if err != nil || len(servers) < nodes {
			return errors.Join(err, fmt.Errorf("%d of %d servers", len(servers), nodes))
		}
		for _, s := range servers {
			if !s.Voter {
				return fmt.Errorf("%s has no vote yet", s.Node)
			}
		}
		return nil
	})
}

func (h *holdfast) stop() {
	for i, p := range h.nodes {
		if p != nil {
			_ = p.kill()
			h.http[i].close()
		}
	}
	os.RemoveAll(h.dir)
}

func (h *holdfast) put(ctx context.Context, node int, key string, value []byte) error {
	_, err := h.ask(ctx, node, http.MethodPut, "/v1/kv/"+key, value)
	return err
}

func (h *holdfast) get(ctx context.Context, node int, key string) error {
	_, err := h.ask(ctx, node, http.MethodGet, "/v1/kv/"+key+"?consistent&raw", nil)
	return err
}

func (h *holdfast) ask(ctx context.Context, node int, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+address(1, node).String()+":8501"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := h.http[node].pick(ctx).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	return text, err
}

type raftServer struct {
	ID, Node      string
	Leader, Voter bool
}

func (h *holdfast) configuration(ctx context.Context, node int) ([]raftServer, error) {
	text, err := h.ask(ctx, node, http.MethodGet, "/v1/operator/raft/configuration", nil)
	if err != nil {
		return nil, err
	}
	var answer struct{ Servers []raftServer }
	err = json.Unmarshal(text, &answer)
	return answer.Servers, err
}

func (h *holdfast) leader(ctx context.Context) (leader int, err error) {
	err = until(ctx, "a leader", func(ctx context.Context) error {
		for i := range nodes {
			servers, err := h.configuration(ctx, i)
			if err != nil {
				continue
			}
			for _, s := range servers {
				if s.Leader {
					_, err := fmt.Sscanf(s.Node, "fb%d", &leader)
					leader--
					return err
				}
			}
		}
		return errors.New("nobody knows one")
	})
	return leader, err
}

func (h *holdfast) kill(node int) error { return h.nodes[node].kill() }

func (h *holdfast) revive(ctx context.Context, node int) error {
	if err := h.nodes[node].start(); err != nil {
		return err
	}
	return h.settled(ctx)
}

func (h *holdfast) transfer(ctx context.Context, to int) error {
	_, err := h.ask(ctx, to, http.MethodPost, "/v1/operator/raft/transfer-leader?id="+nodeName(to), nil)
	return err
}

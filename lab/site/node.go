package site

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/cluster"
	"holdfast/lab"
)

// Node is a service node of the site.
type Node struct {
	Host *lab.Host

	site   *Site
	spec   cluster.Node
	agent  *lab.Proc
	stubs  map[string]*lab.Proc // by service
	binary string               // instead of the site's Binary
}

// Name is the node's name in the cluster file.
func (n *Node) Name() string { return n.spec.Name }

// Addr is the node's address on the main network.
func (n *Node) Addr() netip.Addr { return n.spec.Addresses[n.site.File.Main().Name] }

// Agent is the agent's process, the last one started; nil before.
func (n *Node) Agent() *lab.Proc { return n.agent }

// UseBinary makes the next start run another program.
func (n *Node) UseBinary(path string) { n.binary = path }

// install puts the cluster file and the certificates in place.
func (n *Node) install() error {
	data, err := os.ReadFile(n.site.options.File)
	if err != nil {
		return err
	}
	if err := n.Host.Write("/etc/holdfast/cluster.yaml", data); err != nil {
		return err
	}
	return n.InstallCertificates(n.site.issued)
}

// InstallCertificates gives the node its certificates out of what Certify made.
func (n *Node) InstallCertificates(issued string) error {
	return copyInto(n.Host, filepath.Join(issued, n.Name()), "/etc/holdfast/pki")
}

// CopyCertificates gives the node's certificates to another host.
func (n *Node) CopyCertificates(host *lab.Host, dir string) error {
	return copyInto(host, filepath.Join(n.site.issued, n.Name()), dir)
}

// Start starts the servers behind the node's services and its agent.
func (n *Node) Start(ctx context.Context) error {
	if err := n.StartServices(ctx); err != nil {
		return err
	}
	return n.StartAgent()
}

// StartAgent starts the agent alone.
func (n *Node) StartAgent() error {
	binary := n.site.options.Binary
	if n.binary != "" {
		binary = n.binary
	}
	args := append([]string{binary, "agent"}, n.site.options.AgentArgs...)
	agent, err := n.Host.Start(lab.Cmd{Args: args, Name: "agent"})
	if err != nil {
		return err
	}
	n.agent = agent
	return nil
}

// Kill kills the agent with SIGKILL; the node's services stay.
func (n *Node) Kill() error { return n.agent.Kill() }

// PowerOff takes the node's power away.
func (n *Node) PowerOff() error { return n.Host.PowerOff() }

// PowerOn boots the node and starts what it runs.
func (n *Node) PowerOn(ctx context.Context) error {
	if err := n.Host.PowerOn(); err != nil {
		return err
	}
	return n.Start(ctx)
}

// WipeStore empties the node's data directory, as a new disk would be; its
// certificates and its cluster file are installed again. The host must be off.
func (n *Node) WipeStore() error {
	return n.Host.WipeDisk("/var/lib/holdfast")
}

// CLI runs the holdfast command line on the node.
func (n *Node) CLI(ctx context.Context, args ...string) (string, error) {
	return n.Host.Run(ctx, append([]string{n.site.options.Binary}, args...)...)
}

// Get asks the node's HTTP API for a path and decodes the JSON answer into v
// (may be nil).
func (n *Node) Get(ctx context.Context, path string, v any) error {
	body, err := n.Do(ctx, http.MethodGet, path, nil)
	if err != nil || v == nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// Do makes a request of the node's HTTP API. A status other than 2xx is an
// error that holds the answer's text.
func (n *Node) Do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:8500"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := n.Host.HTTPClient().Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode/100 != 2 {
		return answer, &StatusError{response.StatusCode, strings.TrimSpace(string(answer))}
	}
	return answer, nil
}

// StatusError is an HTTP answer other than 2xx.
type StatusError struct {
	Status int
	Text   string
}

func (e *StatusError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.Status, e.Text) }

// Leader is the name of the leader as the node knows it; "" none.
func (n *Node) Leader(ctx context.Context) (string, error) {
	var leader string // ADDRESS:PORT
	if err := n.Get(ctx, "/v1/status/leader", &leader); err != nil || leader == "" {
		return "", err
	}
	addr, err := netip.ParseAddrPort(leader)
	if err != nil {
		return "", err
	}
	for _, other := range n.site.Nodes {
		if other.Addr() == addr.Addr() {
			return other.Name(), nil
		}
	}
	return "", fmt.Errorf("site: %s names a leader that is no node of ours: %s", n.Name(), leader)
}

// Put writes a key through the node; nil when it was acknowledged.
func (n *Node) Put(ctx context.Context, key, value string) error {
	answer, err := n.Do(ctx, http.MethodPut, "/v1/kv/"+url.PathEscape(key), []byte(value))
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(answer)) != "true" {
		return fmt.Errorf("not acknowledged: %s", answer)
	}
	return nil
}

// List reads every key below prefix linearizably through the node.
func (n *Node) List(ctx context.Context, prefix string) (map[string]string, error) {
	return n.list(ctx, prefix, "consistent")
}

// ListStale reads every key below prefix from the node's own replica.
func (n *Node) ListStale(ctx context.Context, prefix string) (map[string]string, error) {
	return n.list(ctx, prefix, "stale")
}

func (n *Node) list(ctx context.Context, prefix, consistency string) (map[string]string, error) {
	var entries []struct {
		Key   string
		Value []byte
	}
	err := n.Get(ctx, "/v1/kv/"+url.PathEscape(prefix)+"?recurse&"+consistency, &entries)
	if status := new(StatusError); errors.As(err, &status) && status.Status == http.StatusNotFound {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	found := make(map[string]string, len(entries))
	for _, e := range entries {
		found[e.Key] = string(e.Value)
	}
	return found, nil
}

// Log is what the agent printed, over all its starts.
func (n *Node) Log() string {
	if n.agent == nil {
		return ""
	}
	data, err := os.ReadFile(n.agent.StderrPath())
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Poll calls try every few milliseconds until it returns nil or ctx ends; then
// the error is the last one of try.
func Poll(ctx context.Context, try func(context.Context) error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

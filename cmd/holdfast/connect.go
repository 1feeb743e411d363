package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"holdfast/api"
	"holdfast/internal/peer"
)

// connection says which agent a command asks. It is embedded in every command
// that asks one.
type connection struct {
	Socket string `default:"/run/holdfast/core.sock" env:"HOLDFAST_SOCKET" help:"Admin socket of the agent on this machine."`
	Server string `env:"HOLDFAST_SERVER" help:"Ask this agent over HTTPS instead, such as https://fbservice1:8501." placeholder:"URL"`
	PKI    string `name:"pki" default:"/etc/holdfast/pki" env:"HOLDFAST_PKI" help:"An admin's certificate, for --server."`
	Token  string `name:"token-file" env:"HOLDFAST_TOKEN_FILE" help:"File with a token, for --server." placeholder:"FILE"`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// open makes a client of the agent.
func (c *connection) open() (*api.Client, error) {
	if c.Server == "" {
		return api.NewClient(api.ClientConfig{Socket: c.Socket})
	}
	config := api.ClientConfig{URL: c.Server}
	if strings.HasPrefix(c.Server, "https:") {
		trust, err := peer.Load(c.PKI)
		if err != nil {
			return nil, &exitError{exitUsage, fmt.Errorf("--server wants an admin's certificate in --pki (holdfast pki issue --admin NAME makes one): %w", err)}
		}
		config.TLS = trust.Client("") // any server of our cluster can answer
	}
	if c.Token != "" {
		var err error
		if config.Token, err = readToken(c.Token); err != nil {
			return nil, &exitError{exitUsage, err}
		}
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--server: %w", err)}
	}
	return client, nil
}

// readToken reads the file that --token-file names. One that has no token is an
// error of its own: without one the server would say that none was given.
func readToken(path string) (string, error) {
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", fmt.Errorf("--token-file: %s is there and has no token in it (%d bytes): write it there", path, len(text))
	}
	return token, nil
}

// ask opens a client, calls f, and gives its error the exit status that
// scripts rely on.
func (c *connection) ask(f func(*api.Client) error) error {
	client, err := c.open()
	if err != nil {
		return err
	}
	defer client.Close()
	err = f(client)
	var unreachable *api.UnreachableError
	switch {
	case api.NoLeader(err):
		return &exitError{exitNoLeader, err}
	case api.NotFound(err):
		return &exitError{exitNotFound, err}
	case errors.As(err, &unreachable):
		return &exitError{exitUnreachable, err}
	}
	return err
}

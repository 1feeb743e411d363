package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"holdfast/api"
)

type debugCmd struct {
	connection
	Dir     string `type:"path" default:"." help:"Where the archive goes; its name has a random part."`
	Seconds int    `default:"10" help:"How long the processor's profile takes, which slows the agent a little; 0: none. At most 60."`
}

func (*debugCmd) Help() string {
	return "Writes holdfast-debug-TIME-RANDOM.tar.gz, readable by you alone, and prints its name: profiles for go tool pprof, the goroutines, metrics, Raft, " +
		"members, services, conditions, the log's last lines, and the cluster file without its comments and without what may be a secret (headers, bodies, arguments of scripts, URLs' passwords and queries). " +
		"No key of the store, no output of a check, no token, no certificate's key is in it. What can't be had is named in it; then the exit status is 1.\n\n" +
		"Example: holdfast debug --dir /root"
}

func (c *debugCmd) Run(con *console) error {
	if c.Seconds < 0 || c.Seconds > 60 {
		return &exitError{exitUsage, fmt.Errorf("--seconds %d: want 0 to 60", c.Seconds)}
	}
	return c.ask(func(client *api.Client) error {
		if _, err := client.Conditions(con.ctx); err != nil { // before there is a file
			return err
		}
		path, missing, err := c.write(con.ctx, client)
		if err != nil {
			return fmt.Errorf("debug: %w", err)
		}
		if c.JSON {
			err = con.json(map[string]any{"path": path, "missing": missing})
		} else {
			_, err = fmt.Fprintln(con.out, path)
		}
		if err == nil && len(missing) > 0 {
			err = fmt.Errorf("debug: not all could be had: %w", errors.Join(missing...))
		}
		return err
	})
}

// write makes the archive; what is missing of it is no error.
func (c *debugCmd) write(ctx context.Context, client *api.Client) (path string, missing []error, err error) {
	file, err := os.CreateTemp(c.Dir, "holdfast-debug-"+time.Now().UTC().Format("20060102T150405Z")+"-*.tar.gz") // 0600, and nobody's before
	if err != nil {
		return "", nil, err
	}
	packed := gzip.NewWriter(file)
	b := &bundle{tar: tar.NewWriter(packed), now: time.Now()}
	for _, part := range c.parts(client) {
		var content bytes.Buffer
		if err := part.collect(ctx, &content); err != nil {
			b.missing = append(b.missing, fmt.Errorf("%s: %w", part.name, err))
			continue
		}
		b.add(part.name, content.Bytes())
	}
	var note bytes.Buffer
	fmt.Fprintf(&note, "holdfast %s, %s\n", version, b.now.UTC().Format(time.RFC3339))
	for _, err := range b.missing {
		fmt.Fprintf(&note, "missing: %v\n", err)
	}
	b.add("about.txt", note.Bytes())
	err = errors.Join(b.err, b.tar.Close(), packed.Close(), file.Sync(), file.Close(), ctx.Err())
	if err != nil {
		return "", nil, errors.Join(err, os.Remove(file.Name()))
	}
	path, err = filepath.Abs(file.Name())
	return path, b.missing, err
}

// bundle is an archive that is written.
type bundle struct {
	tar     *tar.Writer
	now     time.Time
	missing []error
	err     error
}

func (b *bundle) add(name string, content []byte) {
	if b.err != nil {
		return
	}
	b.err = b.tar.WriteHeader(&tar.Header{Name: "holdfast-debug/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: b.now})
	if b.err == nil {
		_, b.err = b.tar.Write(content)
	}
}

// part is one file of the archive.
type part struct {
	name    string
	collect func(ctx context.Context, w io.Writer) error
}

func (c *debugCmd) parts(client *api.Client) []part {
	profile := func(name string, seconds, debug int) func(context.Context, io.Writer) error {
		return func(ctx context.Context, w io.Writer) error { return client.Profile(ctx, name, seconds, debug, w) }
	}
	parts := []part{
		{"goroutines.txt", profile("goroutine", 0, 2)},
		{"heap.pprof", profile("heap", 0, 0)},
		{"allocs.pprof", profile("allocs", 0, 0)},
		{"mutex.pprof", profile("mutex", 0, 0)},
		{"metrics.txt", client.Metrics},
		{"raft.json", asJSON(client.RaftStatus)},
		{"conditions.json", asJSON(client.Conditions)},
		{"status.json", asJSON(func(ctx context.Context) (api.Status, error) {
			found, err := client.Status(ctx)
			return withoutOutputs(found), err
		})},
		{"config.json", asJSON(func(ctx context.Context) (api.ConfigReport, error) {
			found, err := client.ConfigStatus(ctx)
			found.Config.Problems = nil // they quote the file
			return found, err
		})},
		{"cluster.yaml", func(ctx context.Context, w io.Writer) error { return c.clusterFile(ctx, client, w) }},
	}
	if c.Seconds > 0 {
		parts = append(parts, part{"cpu.pprof", profile("profile", c.Seconds, 0)})
	}
	return append(parts, part{"log.txt", func(ctx context.Context, w io.Writer) error {
		var log bytes.Buffer
		if err := client.RecentLog(ctx, &log); err != nil {
			return err
		}
		_, err := w.Write(redactedLog(log.Bytes()))
		return err
	}}) // last, for what the rest made it log
}

// asJSON makes a part of what a question's answer is.
func asJSON[T any](ask func(context.Context) (T, error)) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		found, err := ask(ctx)
		if err != nil {
			return err
		}
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(found)
	}
}

// clusterFile writes the file that the agent runs, if it is on this machine.
func (c *debugCmd) clusterFile(ctx context.Context, client *api.Client, w io.Writer) error {
	if c.Server != "" {
		return errors.New("the agent was asked over HTTPS, which does not give the file: run this on its node")
	}
	report, err := client.ConfigStatus(ctx)
	if err != nil {
		return err
	}
	if report.Config.Path == "" {
		return nil // a cluster of one, without a file
	}
	data, err := os.ReadFile(report.Config.Path)
	if err != nil {
		return err
	}
	clean, err := redact(data)
	if err != nil {
		return errors.New("it does not parse, and what is secret in it can't be told") // the parser's error quotes it
	}
	_, err = w.Write(clean)
	return err
}

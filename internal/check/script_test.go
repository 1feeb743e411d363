package check

import (
	"os"
	"os/user"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/kernel/command"
	"holdfast/internal/state"
)

func TestScriptRunsAsItsOwnUser(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("only root may become another user")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "hf") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "whoami")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nid -u; id -G\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	commands, err := command.New(path)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, probe(t, Definition{Script: []string{path}, User: "nobody", Timeout: time.Minute}, commands), state.Passing, nobody.Uid+"\n"+nobody.Gid+"\n")
	expect(t, probe(t, Definition{Script: []string{path}, User: "no-such-user"}, commands), state.Critical, "no-such-user")
}

package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/admin"
)

// checkState is what the agent says of one of its own checks; "" when it does
// not answer or has none such.
func (n *node) checkState(t *testing.T, id string) (status, output string) {
	t.Helper()
	answer, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + n.addr + ":8500/v1/agent/checks")
	if err != nil {
		return "", ""
	}
	defer answer.Body.Close()
	var checks map[string]struct{ Status, Output string }
	if json.NewDecoder(answer.Body).Decode(&checks) != nil {
		return "", ""
	}
	return checks[id].Status, checks[id].Output
}

// siteScript writes a program that others may run, and returns its path.
func siteScript(t *testing.T, text string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hf") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "check")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// The script says whose child it is, and ends with its argument.
func TestScriptChecksRunInAUnitOfTheirOwn(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("only root may become another user")
	}
	script := siteScript(t, `test "$(id -un)" = nobody || exit 9
if tr '\0' ' ' </proc/$PPID/cmdline | grep -q -e '--only scripts '; then
	echo "run by the unit with $1"
	exit "$1"
fi
echo "run by core"`)
	n := newNode(t, "web: {on: fbservice1, port: 80, check: {script: ["+script+`, "1"], user: nobody, every: 500ms, timeout: 5s}}`)
	is := func(when, status, words string) {
		t.Helper()
		n.until(t, when+" the check is "+status, func() bool {
			got, output := n.checkState(t, "service:web")
			return got == status && strings.Contains(output, words)
		})
	}
	core := n.startUnit(t, onlyCore)
	is("without the unit", "passing", "run by core")
	unit := n.startUnit(t, onlyScripts)
	is("beside the unit", "warning", "run by the unit with 1")

	unit.kill()
	is("when the unit was killed", "critical", "") // and core does not run it again
	n.startUnit(t, onlyScripts)
	is("when the unit is back", "warning", "run by the unit with 1")

	// Core alone is told of a new file: the unit reads it when it is asked for what
	// it does not know.
	n.edit(t, `"1"], user`, `"0"], user`)
	if err := core.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	is("after a reload", "passing", "run by the unit with 0")

	web := admin.Client(filepath.Join(n.dir, "run", "scripts.sock"))
	answer, err := web.Get(admin.BaseURL + "/v1/unit")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("the unit says of itself: %s", answer.Status)
	}
}

func TestTheScriptsUnitTakesNoClusterFileThatOthersMayWrite(t *testing.T) {
	n := newNode(t, "")
	file := filepath.Join(n.dir, "cluster.yaml")
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	args := []string{"agent", "--only", onlyScripts, "--node", "fbservice1", "--run-dir", filepath.Join(n.dir, "run"), "--config"}
	n.expect(t, exitUsage, "everybody may write to it", append(args, file)...)
	// It runs no older file either: whoever could write that would decide what runs.
	if err := os.WriteFile(file, []byte("schema: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.expect(t, exitUsage, "cluster", append(args, file)...)
	if files, err := filepath.Glob(filepath.Join(n.dir, "run", "*")); err != nil || len(files) != 0 {
		t.Errorf("it left %v, %v", files, err)
	}
}

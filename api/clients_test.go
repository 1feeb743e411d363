package api

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// debianPython is the interpreter that sees Debian's modules.
const debianPython = "/usr/bin/python3"

// python runs a script of testdata that ends with OK, against a cell.
func python(t *testing.T, c *cell, script string, args ...string) {
	t.Helper()
	if probe := exec.Command(debianPython, "-c", "import consul, patroni.dcs.consul"); probe.Run() != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("python3-consul and patroni are not installed: hack/deps")
		}
		t.Skip("python3-consul and patroni are not installed: hack/deps")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, debianPython, append([]string{"testdata/" + script, strings.TrimPrefix(c.url, "http://")}, args...)...)
	var said strings.Builder
	command.Stderr = &said
	out, err := command.Output()
	if err != nil || strings.TrimSpace(string(out)) != "OK" {
		t.Errorf("%s: %v\n%s%s", script, err, out, said.String())
	}
}

func TestPatroniElectsAndKeepsItsLeader(t *testing.T) {
	python(t, withAgent(t), "patroni_node.py")
}

func TestDebiansPythonConsulWorks(t *testing.T) {
	python(t, withAgent(t), "pyconsul.py", "n1")
}

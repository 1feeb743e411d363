package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/admin"
	"holdfast/vrrp"
)

// unitProcess is one unit of a node, as a process of its own.
type unitProcess struct {
	cmd *exec.Cmd
	log *logBuffer
}

func (n *node) startUnit(t *testing.T, only string, more ...string) *unitProcess {
	t.Helper()
	u := &unitProcess{log: &logBuffer{}}
	u.cmd = exec.Command("/proc/self/exe", "agent", "--only", only, "--config", filepath.Join(n.dir, "cluster.yaml"), "--node", "fbservice1",
		"--data-dir", filepath.Join(n.dir, "data"), "--run-dir", filepath.Join(n.dir, "run"), "--pki", filepath.Join(n.dir, "issued", "fbservice1"),
		"--dns-listen", n.addr+":5353", "--http-listen", n.addr+":8500")
	u.cmd.Args = append(u.cmd.Args, more...)
	u.cmd.Env = append(os.Environ(), asHoldfast+"=1")
	u.cmd.Stdout, u.cmd.Stderr = u.log, u.log
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u.kill()
		if t.Failed() {
			t.Logf("the log of %s:\n%s", only, u.log)
		}
	})
	return u
}

// kill ends it as a crash does.
func (u *unitProcess) kill() {
	_ = u.cmd.Process.Kill()
	_ = u.cmd.Wait()
}

// answers tells whether the node's DNS has a name that only the store has.
func (n *node) answers(t *testing.T) bool {
	t.Helper()
	out, _ := n.run(t, "", "dns", "query", "db1.hpc.example.com")
	return strings.Contains(out, "IN A 10.1.0.51")
}

func TestDNSGoesOnWithoutCoreAndStartsFromTheDisk(t *testing.T) {
	n := newNode(t, "web: {on: fbservice1, port: 80}")
	core, names := n.startUnit(t, "core"), n.startUnit(t, "dns")
	n.until(t, "core streams a state that a leader has confirmed", func() bool {
		out, status := n.run(t, "", "dns", "status")
		return status == exitOK && strings.Contains(out, "core streams")
	})
	n.expect(t, exitOK, "added", "dns", "record", "add", "db1", "A", "10.1.0.51") // by way of core
	n.expect(t, exitFailed, "CNAME stands alone", "dns", "record", "add", "db1", "CNAME", "db2")
	n.until(t, "dns explains a name by way of core", func() bool {
		out, _ := n.run(t, "", "dns", "query", "explain.web.service.virtual", "TXT", "--tcp")
		return strings.Contains(out, "as fbservice1 answers it")
	})
	saved := filepath.Join(n.dir, "data", "state.dns")
	n.until(t, "the record is on the unit's disk", func() bool {
		text, _ := os.ReadFile(saved)
		return strings.Contains(string(text), "db1.") // with the dot: "db1" may be in a node's UUID
	})

	n.until(t, "dns answers with the record", func() bool { return n.answers(t) })

	core.kill()
	n.until(t, "dns sees that core is gone", func() bool {
		out, _ := n.run(t, "", "dns", "status")
		return strings.Contains(out, "core does not stream")
	})
	if !n.answers(t) {
		t.Error("without core dns no longer answers")
	}
	n.expect(t, exitNoLeader, "core does not answer", "dns", "record", "add", "db2", "A", "10.1.0.52")

	names.kill()
	n.startUnit(t, "dns")
	n.until(t, "a dns that starts without core answers from the disk", func() bool { return n.answers(t) })
	out, _ := n.run(t, "", "dns", "status")
	if !strings.Contains(out, "read from the disk") || !strings.Contains(out, "a leader confirmed the state ") {
		t.Errorf("it does not say how old that is: %s", out)
	}
	n.until(t, "the age is a condition", func() bool {
		out, status := n.run(t, "", "dns", "status", "--json")
		return status == exitDegraded && strings.Contains(out, `"from_disk": true`)
	})

	n.startUnit(t, "core")
	n.until(t, "dns is fresh again by itself", func() bool {
		out, status := n.run(t, "", "dns", "status")
		return status == exitOK && strings.Contains(out, "core streams") && !strings.Contains(out, "disk")
	})
	n.expect(t, exitOK, "added", "dns", "record", "add", "db2", "A", "10.1.0.52")
}

// TestTheLogsUnitTakesUpNewCertificates: it speaks to other nodes, without core.
func TestTheLogsUnitTakesUpNewCertificates(t *testing.T) {
	n := newNode(t, "")
	n.edit(t, "run: [dns, ntp]", "run: [logs]")
	u := n.startUnit(t, "logs", "--relp-listen", n.addr+":20514", "--logs-dir", filepath.Join(n.dir, "logs"))
	web := admin.Client(filepath.Join(n.dir, "run", "logs.sock"))
	conditions := func() string {
		answer, err := web.Get(admin.BaseURL + "/v1/unit")
		if err != nil {
			return ""
		}
		defer answer.Body.Close()
		text, _ := io.ReadAll(answer.Body)
		return string(text)
	}
	n.until(t, "the unit answers", func() bool { return strings.Contains(conditions(), `"conditions"`) })
	if strings.Contains(conditions(), conditionExpiry) {
		t.Fatalf("a new certificate ends soon: %s", conditions())
	}
	ca := filepath.Join(n.dir, "ca")
	n.expect(t, exitOK, "begun", "pki", "rotate", "begin", "--ca", ca)
	n.expect(t, exitOK, "fbservice1", "pki", "issue", "--ca", ca, "--config", filepath.Join(n.dir, "cluster.yaml"), "--out", filepath.Join(n.dir, "issued"), "--validity", "20d")
	if err := u.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	n.until(t, "it trusts the new authority and has the new certificate", func() bool {
		log := u.log.String()
		return strings.Contains(log, "another authority is trusted from now on") && strings.Contains(log, "a new certificate is in force")
	})
	n.until(t, "the certificate's end is a condition", func() bool { return strings.Contains(conditions(), conditionExpiry) })
}

func TestAUnitSeesAndWritesNothingButItsOwn(t *testing.T) {
	for unit, part := range grants() {
		for _, kind := range part.Kinds {
			if !strings.HasPrefix(kind, unit+"/") && (unit != onlyNet || !strings.HasPrefix(kind, "lb/") && kind != vrrp.KindLease) {
				t.Errorf("unit %s is granted documents of %q", unit, kind)
			}
		}
	}
}

// TestUnitsListsTheUnitThatHasNoState: where it answers, also when its socket is
// elsewhere, as the node's file says; and that it does not.
func TestUnitsListsTheUnitThatHasNoState(t *testing.T) {
	n := newNode(t, "")
	socket := filepath.Join(n.dir, "scripts", "elsewhere.sock")
	if err := os.Mkdir(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOLDFAST_NODE_FILE", nodeFileOf(t, "run-dir: "+filepath.Join(n.dir, "run")+"\nscripts-socket: "+socket+"\n"))
	n.expect(t, exitNotFound, "follows", "units")
	unit := n.startUnit(t, onlyScripts)
	n.until(t, "the unit is listed", func() bool {
		out, status := n.run(t, "", "units")
		return status == exitOK && strings.HasPrefix(out, "scripts: runs what core asks for")
	})
	if out := n.expect(t, exitOK, `"unit": "scripts"`, "units", "--json"); strings.Contains(out, "confirmed") {
		t.Errorf("it has no state, and tells of its age: %s", out)
	}
	unit.kill() // its socket stays
	n.expect(t, exitDegraded, "scripts: ", "units")
}

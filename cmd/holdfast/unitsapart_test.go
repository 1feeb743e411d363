package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/ntp"
	"holdfast/internal/stream"
)

// follows is what `holdfast units` tells of one unit.
func (n *node) follows(t *testing.T, unit string) (s stream.Status, ok bool) {
	t.Helper()
	out, _ := n.run(t, "", "units", "--run-dir", filepath.Join(n.dir, "run"), "--json")
	out, _, _ = strings.Cut(out, "\n]") // what follows is why the status is not 0
	var all []stream.Status
	if json.Unmarshal([]byte(out+"\n]"), &all) != nil {
		return s, false
	}
	for _, s := range all {
		if s.Unit == unit {
			return s, true
		}
	}
	return s, false
}

// Each unit serves what it is for beside core, goes on when core is killed, starts
// without it, and follows again when it is back.
func TestNTPPackagesAndLogsAreUnitsOfTheirOwn(t *testing.T) {
	n := newNode(t, "web: {on: fbservice1, port: 80}")
	path := filepath.Join(n.dir, "cluster.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wider := strings.Replace(string(text), "run: [dns, ntp]", "run: [dns, ntp, apt, logs]", 1)
	if err := os.WriteFile(path, []byte(wider), 0o600); err != nil {
		t.Fatal(err)
	}
	serves := map[string]func() error{
		onlyNTP: func() error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := ntp.Query(ctx, n.addr+":1123")
			return err
		},
		onlyAPT: func() error {
			response, err := (&http.Client{Timeout: patience}).Get("http://" + n.addr + ":3142/")
			if err == nil {
				response.Body.Close()
			}
			return err
		},
		onlyLogs: func() error {
			conn, err := net.DialTimeout("tcp", n.addr+":20514", patience)
			if err == nil {
				err = conn.Close()
			}
			return err
		},
	}
	args := []string{"--ntp-listen", n.addr + ":1123", "--apt-listen", n.addr + ":3142", "--relp-listen", n.addr + ":20514", "--logs-dir", filepath.Join(n.dir, "hosts")}
	core := n.startUnit(t, onlyCore)
	units := map[string]*unitProcess{}
	for unit := range serves {
		units[unit] = n.startUnit(t, unit, args...)
	}
	fresh := func(unit string) {
		t.Helper()
		n.until(t, unit+" follows core", func() bool {
			s, ok := n.follows(t, unit)
			return ok && s.Connected && s.Confirmed && !s.FromDisk
		})
	}
	answers := func(when, unit string) {
		t.Helper()
		var last error
		n.until(t, fmt.Sprintf("%s serves %s", unit, when), func() bool { last = serves[unit](); return last == nil })
	}
	for unit := range serves {
		fresh(unit)
		answers("beside core", unit)
		saved := filepath.Join(n.dir, "data", "state."+unit)
		n.until(t, "the state of "+unit+" is on the disk", func() bool { _, err := os.Stat(saved); return err == nil })
	}
	core.kill()
	for unit := range serves {
		n.until(t, unit+" sees that core is gone", func() bool { s, ok := n.follows(t, unit); return ok && !s.Connected })
		if err := serves[unit](); err != nil {
			t.Errorf("without core %s does not serve: %v", unit, err)
		}
		units[unit].kill()
		units[unit] = n.startUnit(t, unit, args...)
		answers("when it starts without core", unit)
		n.until(t, unit+" says that its state is the disk's, and how old", func() bool {
			s, ok := n.follows(t, unit)
			return ok && s.FromDisk && s.Confirmed && s.Age > 0 && !s.Connected
		})
	}
	n.startUnit(t, onlyCore)
	for unit := range serves {
		fresh(unit)
	}
}

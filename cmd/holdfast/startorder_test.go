package main

import (
	"net"
	"strings"
	"testing"
)

// TestStatusSaysThatAPortIsTaken: another program has the API's port when the
// agent starts. `holdfast status` answers and says so, where it said that no agent
// answers; and the agent goes on once the port is free.
func TestStatusSaysThatAPortIsTaken(t *testing.T) {
	n := newNode(t, "")
	taken, err := net.Listen("tcp", n.addr+":8500")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	n.start(t, "fbservice1")
	last := ""
	n.until(t, "status tells of the port", func() bool {
		last, _ = n.run(t, "", "status")
		return strings.Contains(last, "listen on "+n.addr+":8500") && strings.Contains(last, "another program has port 8500")
	})
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	n.until(t, "the condition ends", func() bool {
		last, _ = n.run(t, "", "status")
		return strings.Contains(last, "Leader: fbservice1") && !strings.Contains(last, "another program")
	})
}

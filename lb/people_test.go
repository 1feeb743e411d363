package lb

import (
	"net/netip"
	"testing"

	"holdfast/internal/check"
)

// What can't be told is left out, and the others are told.
func TestAMessageReachesEveryTerminalThatTakesIt(t *testing.T) {
	logins := []Login{{User: "scp"}, {User: "gone", TTY: "no-such-terminal"}, {User: "a", TTY: "null"}, {User: "file", TTY: "shm"}, {User: "b", TTY: "null"}}
	if told := wall(logins, "the node goes down"); told != 2 {
		t.Errorf("%d were told, want 2", told)
	}
}

func TestAProbeGoesThroughTheAddressOnlyWithAMarkAndASource(t *testing.T) {
	source := netip.MustParseAddr("10.1.0.1")
	v := VirtualService{Addr: netip.MustParseAddr("10.1.0.100"), Port: 22, From: source}
	want := check.Via{To: netip.MustParseAddrPort("10.1.0.100:22"), From: source, Mark: 7}
	if got := v.via(Server{Mark: 7}); got != want {
		t.Errorf("with both: %+v, want %+v", got, want)
	}
	if got := v.via(Server{}); got != (check.Via{}) {
		t.Errorf("without a mark: %+v", got)
	}
	v.From = netip.Addr{}
	if got := v.via(Server{Mark: 7}); got != (check.Via{}) {
		t.Errorf("without a source: %+v", got)
	}
}

package logrelay

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestTheGuidesRsyslogConfigurationWorks: what the guide gives to clients, with
// the relay's address in place of the cluster's, in Debian's rsyslogd. It fails
// if rsyslogd does not understand it, or sends elsewhere than to the port that is
// served unless the cluster file says another.
func TestTheGuidesRsyslogConfigurationWorks(t *testing.T) {
	text, err := os.ReadFile("../docs/guide.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```conf\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(found) != 1 || !strings.Contains(found[0][1], "omrelp") {
		t.Fatalf("%d configurations of rsyslog, want one", len(found))
	}
	usual := fmt.Sprintf(`target="10.1.0.110" port="%d"`, defaultPort(t))
	if !strings.Contains(found[0][1], usual) {
		t.Fatalf("the guide sends elsewhere than to %s: %s", usual, found[0][1])
	}
	s, dir, _ := serve(t, nil)
	host, port, err := net.SplitHostPort(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	r := startRsyslog(t, "", strings.Replace(found[0][1], usual, fmt.Sprintf(`target="%s" port="%s"`, host, port), 1))
	const count = 100
	r.log(0, count)
	p := process{t: t, dir: dir}
	eventually(t, time.Minute, "the lines are there", func() error {
		if lost := missing(p.numbers("cn01"), count); len(lost) > 0 {
			return fmt.Errorf("lines %v are missing; %s", lost, r.said())
		}
		return nil
	})
}

// defaultPort is where RELP is taken unless the cluster file says another.
func defaultPort(t *testing.T) uint16 {
	t.Helper()
	set := settingsOf(t, "{}")
	if len(set.listen[viaRELP]) != 1 {
		t.Fatalf("RELP is taken at %v", set.listen[viaRELP])
	}
	return set.listen[viaRELP][0].Port()
}

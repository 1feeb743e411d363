package main

import (
	"io"
	"strings"
	"testing"
	"time"
)

func TestAMissedTimeIsToldWithWhatIsAllowed(t *testing.T) {
	s := &story{out: io.Discard}
	s.within("cold start", 4*time.Second, 3*time.Second)
	s.within("failover", time.Second, 3*time.Second)
	err := s.table()
	if err == nil || !strings.HasPrefix(err.Error(), "missed: cold start: 4s, allowed < 3s") || strings.Contains(err.Error(), "failover") {
		t.Errorf("%v", err)
	}
}

func TestABusyMachineIsNamed(t *testing.T) {
	if got := loadRemark("11.20 8.10 4.00 9/812 4711\n", 2); got != " (the machine's load was 11 on 2 processors: times are judged on an idle one)" {
		t.Errorf("busy: %q", got)
	}
	for _, idle := range []string{"1.90 0.10 0.00 1/200 1\n", ""} {
		if got := loadRemark(idle, 2); got != "" {
			t.Errorf("%q: %q", idle, got)
		}
	}
}

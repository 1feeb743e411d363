package telemetry

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestLevelCanBeChangedWhileRunning(t *testing.T) {
	var out bytes.Buffer
	log, level, err := NewLogger(&out, "json", "info")
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("first")
	level.Set(slog.LevelDebug)
	log.Debug("second")
	if got := out.String(); strings.Contains(got, "first") || !strings.Contains(got, `"msg":"second"`) {
		t.Errorf("log holds %q", got)
	}
}

func TestUnknownLevelOrFormatSaysWhatIsAllowed(t *testing.T) {
	for _, c := range []struct{ format, level, want string }{
		{"text", "loud", "want debug, info, warn or error"},
		{"xml", "info", "want text or json"},
	} {
		if _, _, err := NewLogger(&bytes.Buffer{}, c.format, c.level); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s/%s: error %v, want %q", c.format, c.level, err, c.want)
		}
	}
}

func TestRegistryPassesTheLinter(t *testing.T) {
	problems, err := testutil.GatherAndLint(NewRegistry("1.2.3"), "holdfast_build_info")
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

package logs

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/lab/vm"
)

func TestMain(m *testing.M) {
	for env, f := range map[string]func(string) error{loadEnv: load, verifyEnv: verify, pairEnv: pairNode, pairClientsEnv: pairClients} {
		if what := os.Getenv(env); what != "" {
			if err := f(what); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// acknowledged is how many lines each client was told are stored.
func acknowledged(t *testing.T, printed []string) (counts [clients]int) {
	t.Helper()
	for _, line := range printed {
		var client, count int
		if _, err := fmt.Sscanf(line, "acknowledged %d %d", &client, &count); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		counts[client] = count
	}
	return counts
}

// TestAPowerCutLosesNoLineThatWasAcknowledged cuts the power of a machine whose
// disk forgets what was not flushed, and lets some of that survive by chance,
// while clients send by RELP, in the middle of a flush: a line that is
// acknowledged before the journal is synced is caught. LOGS_CUTS says how often
// (2).
func TestAPowerCutLosesNoLineThatWasAcknowledged(t *testing.T) {
	var told [][clients]int // of each round
	vm.PowerCuts{
		Cuts: 2, Variable: "LOGS_CUTS", Size: 256 << 20,
		Write: func(cut int) []string { return []string{fmt.Sprintf("%s=%s %d", loadEnv, vm.PowerDir, cut)} },
		Lines: 20, Later: 2 * time.Second,
		Verify: []string{verifyEnv + "=" + vm.PowerDir},
		Check: func(cut int, printed []string, there string) {
			told = append(told, acknowledged(t, printed))
			for round, counts := range told {
				for client, count := range counts {
					_, rest, _ := strings.Cut(there, fmt.Sprintf("client%d round %d: ", client, round))
					var found int
					if _, err := fmt.Sscanf(rest, "%d in order\n", &found); count > 0 && (err != nil || found < count) {
						line, _, _ := strings.Cut(rest, "\n")
						t.Errorf("cut %d: of round %d, client %d was told of %d lines; there: %q", cut, round, client, count, line)
					}
				}
			}
		},
	}.Run(t)
	sum := 0
	for _, counts := range told {
		for _, n := range counts {
			sum += n
		}
	}
	t.Logf("%d lines acknowledged", sum)
}

package vrrp

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/runfile"
)

func comparer() cmp.Option {
	return cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
}

func TestJournalKeepsWhatIsOursAndNothingElse(t *testing.T) {
	dir, at := t.TempDir(), runfile.Origin{Boot: "boot", NetNS: 4}
	j, _, err := openJournal(dir, at)
	if err != nil {
		t.Fatal(err)
	}
	one := entry{2, "eth0", netip.MustParsePrefix("10.1.0.101/32"), "dns1"}
	two := entry{2, "eth0", netip.MustParsePrefix("10.1.0.102/32"), "dns2"}
	six := entry{3, "eth1", netip.MustParsePrefix("2001:db8::1/128"), "wan"}
	for _, step := range []error{j.add([]entry{six, two}), j.add([]entry{one, two}), j.remove([]entry{two})} {
		if step != nil {
			t.Fatal(step)
		}
	}
	again, broken, err := openJournal(dir, at)
	if err != nil || broken != 0 {
		t.Fatal(err, broken)
	}
	if diff := cmp.Diff([]entry{one, six}, again.list(), comparer()); diff != "" {
		t.Error(diff)
	}
}

func TestJournalOfAnotherBootOrNamespaceIsIgnored(t *testing.T) {
	dir := t.TempDir()
	text := "boot 4 2 eth0 10.1.0.101/32 dns1\n" +
		"other 4 2 eth0 10.1.0.102/32 dns2\n" +
		"boot 5 2 eth0 10.1.0.103/32 dns3\n" +
		"boot 4 0 eth0 10.1.0.104/32 dns4\n" +
		"boot 4 2 eth0 10.1.0.105 dns5\n" +
		"boot 4 2 eth"
	if err := os.WriteFile(filepath.Join(dir, journalFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	j, broken, err := openJournal(dir, runfile.Origin{Boot: "boot", NetNS: 4})
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{{2, "eth0", netip.MustParsePrefix("10.1.0.101/32"), "dns1"}}
	if diff := cmp.Diff(want, j.list(), comparer()); diff != "" || broken != 3 {
		t.Errorf("%d broken lines, want 3; %s", broken, diff)
	}
}

func TestJournalThatCannotBeWrittenDoesNotClaimAnything(t *testing.T) {
	dir := t.TempDir()
	j, _, err := openJournal(filepath.Join(dir, "missing"), runfile.Origin{Boot: "boot", NetNS: 4})
	if err != nil {
		t.Fatal(err)
	}
	if j.add([]entry{{2, "eth0", netip.MustParsePrefix("10.1.0.101/32"), "dns1"}}) == nil || len(j.list()) != 0 {
		t.Errorf("the journal has %v although nothing was written", j.list())
	}
}

func FuzzParseJournal(f *testing.F) {
	f.Add([]byte("boot 4 2 eth0 10.1.0.101/32 dns1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		runfile.Origin{Boot: "boot", NetNS: 4}.Parse(text, entryWords, func(words []string, _ bool) bool {
			e, ok := parseEntry(words)
			if ok && (e.Index <= 0 || !e.Prefix.IsValid() || e.Router == "") {
				t.Errorf("%q gave %+v", text, e)
			}
			return ok
		})
	})
}

package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/health"
)

// site is a node's cluster file and last good copy.
type site struct {
	path, lastGood string
	board          *health.Board
}

func newSite(t *testing.T) *site {
	dir := t.TempDir()
	return &site{
		path:     filepath.Join(dir, "etc", "cluster.yaml"),
		lastGood: filepath.Join(dir, "var", "last-good.yaml"),
		board:    health.NewBoard(time.Now, nil, nil),
	}
}

func (s *site) write(t *testing.T, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(s.path), 0o755), os.WriteFile(s.path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func (s *site) open(t *testing.T) *Source {
	t.Helper()
	source, err := OpenSource(s.path, s.lastGood, permissive(), s.board)
	if err != nil {
		t.Fatal(err)
	}
	return source
}

func (s *site) condition(name string) string {
	for _, c := range s.board.Conditions() {
		if c.Name == name {
			return c.Message
		}
	}
	return ""
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestNodeStartsFromItsLastGoodCopyAndSaysSo(t *testing.T) {
	s := newSite(t)
	s.write(t, small)
	good := s.open(t).Current()

	for name, damage := range map[string]func(){
		"mistakes": func() { s.write(t, small+"nmaing: {}\n") },
		"missing":  func() { os.Remove(s.path) },
		"empty":    func() { s.write(t, "") },
	} {
		t.Run(name, func(t *testing.T) {
			damage()
			source := s.open(t)
			if got := source.Current(); got.Sum != good.Sum || got.Path != s.lastGood || len(got.Nodes) != 4 {
				t.Errorf("runs %s with sum %s, want %s", got.Path, got.Sum, good.Sum)
			}
			message := s.condition(ConditionLastGood)
			if !strings.Contains(message, s.path) || !strings.Contains(message, "holdfast config reload") {
				t.Errorf("condition %q names neither the file nor the remedy", message)
			}
			if name == "mistakes" && !strings.Contains(message, `did you mean "naming"`) {
				t.Errorf("condition %q does not quote the mistake", message)
			}
			s.write(t, small)
			if _, err := source.Reload(); err != nil {
				t.Fatal(err)
			}
			if s.condition(ConditionLastGood) != "" || source.Current().Path != s.path {
				t.Error("the mended file does not end the condition")
			}
		})
	}
}

func TestFirstStartWithMistakesIsRefused(t *testing.T) {
	s := newSite(t)
	s.write(t, "schema: 1\n")
	_, err := OpenSource(s.path, s.lastGood, permissive(), s.board)
	if _, ok := errors.AsType[Errors](err); !ok {
		t.Errorf("error %v, want Errors", err)
	}
	os.Remove(s.path)
	if _, err := OpenSource(s.path, s.lastGood, permissive(), s.board); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that the file is missing", err)
	}
	if err := os.MkdirAll(filepath.Dir(s.lastGood), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.lastGood, []byte("schema: 1\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSource(s.path, s.lastGood, permissive(), s.board); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "last good copy") {
		t.Errorf("error %v, want both", err)
	}
}

func TestReloadWithMistakesChangesNothing(t *testing.T) {
	s := newSite(t)
	s.write(t, small)
	source := s.open(t)
	before, changed := source.Current(), source.Changed()
	kept, _ := os.ReadFile(s.lastGood)

	s.write(t, strings.Replace(small, "voters: 3", "voters: 2", 1))
	if _, err := source.Reload(); err == nil {
		t.Fatal("no error")
	}
	now, _ := os.ReadFile(s.lastGood)
	if source.Current() != before || isClosed(changed) || string(now) != string(kept) {
		t.Error("something changed")
	}

	s.write(t, strings.Replace(small, "voters: 3", "voters: 1", 1))
	change, err := source.Reload()
	if err != nil {
		t.Fatal(err)
	}
	if !isClosed(changed) || source.Current() == before || source.Current().Voters() != 1 || !change.Has("servers") {
		t.Errorf("the good file did not come into force: %+v", change)
	}
	if isClosed(source.Changed()) {
		t.Error("the next change was told before it came")
	}
}

func TestReloadOfTheSameBytesWakesNobody(t *testing.T) {
	s := newSite(t)
	s.write(t, small)
	source := s.open(t)
	changed := source.Changed()
	if change, err := source.Reload(); err != nil || !change.IsEmpty() || isClosed(changed) {
		t.Errorf("%+v, %v", change, err)
	}
	s.write(t, "# the same with a comment\n"+small)
	if change, err := source.Reload(); err != nil || !change.IsEmpty() || !isClosed(changed) {
		t.Errorf("%+v, %v: peers compare sums, so that the new one must be told", change, err)
	}
}

func TestLastGoodCopyIsWrittenWholeAndPrivate(t *testing.T) {
	s := newSite(t)
	s.write(t, small)
	s.open(t)
	info, err := os.Stat(s.lastGood)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Fatalf("mode %v, %v", info, err)
	}
	entries, err := os.ReadDir(filepath.Dir(s.lastGood))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the copy: %v, %v", entries, err)
	}
}

func TestCopyThatCannotBeKeptIsAConditionNotAnEnd(t *testing.T) {
	s := newSite(t)
	s.write(t, small)
	s.lastGood = filepath.Join(s.path, "no-directory", "copy") // below a file
	source := s.open(t)
	if source.Current() == nil || s.condition(ConditionUnsaved) == "" {
		t.Errorf("conditions %v", s.board.Conditions())
	}
}

func TestSourceWithoutAFile(t *testing.T) {
	source := NewSource(mustParse(t, small))
	if source.Current().Name != "foobar" || isClosed(source.Changed()) {
		t.Error("wrong file")
	}
	if _, err := source.Reload(); err == nil {
		t.Error("reloaded what has no file")
	}
}

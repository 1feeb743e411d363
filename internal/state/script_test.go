package state

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files below testdata")

// TestScripts plays the scripts in testdata/scripts. A script is a list of
// blocks, separated by blank lines: what is done, "---", what comes of it. Lines
// that begin with # are for the reader.
//
// Commands are those of script_command_test.go and queries those of
// script_query_test.go. Besides:
//
//	watch QUERY...        from now on say when the query's watch fires
//	save, restore         write a snapshot; read it back into the same store
//	restart               go on with a new store that read a snapshot
//
// After each command the script says what it changed and whom it woke. That a
// watch stayed silent while the query's answer or index moved fails the test,
// whatever the script says.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/scripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(strings.Split(string(text), "\n"), strings.Split(got, "\n")); d != "" {
				t.Errorf("the script says - and the store +:\n%s", d)
			}
		})
	}
}

// play runs a script and returns it with the answers of this run.
func play(t *testing.T, text string) string {
	p := &player{t: t, store: New()}
	var out []string
	for block := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n\n") {
		input, _, _ := strings.Cut(block, "\n---")
		var comment, lines []string
		for line := range strings.Lines(input) {
			line = strings.TrimRight(line, "\n")
			if strings.HasPrefix(line, "#") {
				comment = append(comment, line)
			} else {
				lines = append(lines, line)
			}
		}
		shown := append(comment, lines...)
		if len(lines) > 0 {
			shown = append(append(shown, "---"), p.do(lines)...)
		}
		out = append(out, strings.Join(shown, "\n"))
	}
	return strings.Join(out, "\n\n") + "\n"
}

// player carries out a script's blocks.
type player struct {
	t       *testing.T
	store   *Store
	index   uint64
	saved   []byte
	watches []*watched
}

// watched is a query that the script watches.
type watched struct {
	query  line
	ws     WatchSet
	index  uint64
	answer []string
}

func (w *watched) arm(p *player) {
	w.ws = WatchSet{}
	w.answer, w.index = ask(p.t, p.store.Snapshot(), w.ws, w.query)
}

func (w *watched) fired() bool {
	for ch := range w.ws {
		select {
		case <-ch:
			return true
		default:
		}
	}
	return false
}

// do carries out one block and returns what came of it.
func (p *player) do(block []string) []string {
	head := parseLine(p.t, block[0])
	before := p.store.Snapshot()
	changed := p.store.Changed()
	var out []string
	switch head.verb {
	case "watch":
		w := &watched{query: head.shift(p.t)}
		w.arm(p)
		p.watches = append(p.watches, w)
		return []string{fmt.Sprintf("index %d", w.index)}
	case "members":
		p.store.SetMembers(parseMembers(p.t, head))
		out = []string{"ok"}
	case "save":
		p.saved = p.snapshot()
		return []string{"ok"}
	case "restore":
		if err := p.store.Restore(bytes.NewReader(p.saved)); err != nil {
			p.t.Fatal(err)
		}
		p.index = p.store.Snapshot().Index()
		out = []string{fmt.Sprintf("index %d", p.index)}
	case "restart":
		return p.restart()
	default:
		cmd, ok := parseCommand(p.t, head, block[1:])
		if !ok {
			answer, index := ask(p.t, before, nil, head)
			return append([]string{fmt.Sprintf("index %d", index)}, answer...)
		}
		out = []string{p.apply(cmd)}
	}
	out = append(out, p.changes(before.Version(), changed)...)
	return append(out, p.woken()...)
}

// apply carries out a command as a replica gets it: encoded and decoded.
func (p *player) apply(cmd Command) string {
	b, err := Encode(cmd)
	if err != nil {
		return err.Error()
	}
	if cmd, err = Decode(b); err != nil {
		p.t.Fatal(err)
	}
	p.index++
	if err := p.store.Apply(p.index, cmd); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("ok %d", p.index)
}

// changes tells what Since lists, and that Changed agrees with it.
func (p *player) changes(version uint64, changed <-chan struct{}) []string {
	keys, ok := p.store.Since(version)
	select {
	case <-changed:
	default:
		if len(keys) > 0 || !ok {
			p.t.Errorf("Changed is open after a change of %v", keys)
		}
		return []string{"no change"}
	}
	if !ok {
		return []string{"changed: everything"}
	}
	return []string{"changed: " + showKeys(keys)}
}

func showKeys(keys []Key) string {
	var names []string
	for _, k := range keys {
		names = append(names, strings.TrimSuffix(string(k.Table)+"/"+printable(k.Name), "/"))
	}
	return strings.Join(names, " ")
}

// woken tells which watches fired, and holds those that did not to it.
func (p *player) woken() []string {
	var out []string
	for _, w := range p.watches {
		old := *w
		w.arm(p)
		moved := w.index != old.index || !slices.Equal(w.answer, old.answer)
		switch {
		case old.fired() && moved:
			out = append(out, fmt.Sprintf("woke: %s (index %d)", w.query, w.index))
		case old.fired():
			out = append(out, fmt.Sprintf("woke for nothing: %s", w.query))
		case moved:
			p.t.Errorf("%s moved from index %d to %d and its watch is silent", w.query, old.index, w.index)
		}
		if w.index < old.index && old.index <= p.index {
			p.t.Errorf("%s went back from index %d to %d", w.query, old.index, w.index)
		}
	}
	return out
}

func (p *player) snapshot() []byte { return snapshotOf(p.t, p.store) }

func snapshotOf(t testing.TB, s *Store) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := s.Snapshot().WriteTo(&b)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Errorf("WriteTo says %d bytes and wrote %d", n, b.Len())
	}
	return b.Bytes()
}

func (p *player) restart() []string {
	b := p.snapshot()
	members := p.store.Snapshot().Members()
	p.store = New()
	if err := p.store.Restore(bytes.NewReader(b)); err != nil {
		p.t.Fatal(err)
	}
	p.store.SetMembers(members)
	if !bytes.Equal(b, p.snapshot()) {
		p.t.Error("the snapshot of a restored store differs from the one it read")
	}
	out := []string{"ok"}
	for _, w := range p.watches {
		old := *w
		w.arm(p)
		if w.index != old.index || !slices.Equal(w.answer, old.answer) {
			out = append(out, fmt.Sprintf("differs: %s (index %d, was %d)", w.query, w.index, old.index))
		}
	}
	return out
}

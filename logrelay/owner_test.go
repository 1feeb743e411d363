package logrelay

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// strangers are a user and a group to give files to: of nobody here, or this
// process's own where it may not give any away.
func strangers() (uid, gid int) {
	if os.Geteuid() == 0 {
		return 12345, 23456
	}
	return os.Geteuid(), os.Getegid()
}

// TestFilesAreGivenToTheirOwner: new ones and those that were there, whatever
// the umask; and their compressed form.
func TestFilesAreGivenToTheirOwner(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	uid, gid := strangers()
	path := filepath.Join(dir, "cn1.log")
	check := func(path string, uid, gid int, mode os.FileMode) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if u, g := ownerOf(info); u != uid || g != gid || info.Mode().Perm() != mode {
			t.Errorf("%s is of %d:%d with mode %v, want %d:%d with %v", path, u, g, info.Mode().Perm(), uid, gid, mode)
		}
	}
	open := func(o ownership, text string) {
		t.Helper()
		a, err := o.find()
		if err != nil {
			t.Fatal(err)
		}
		file, _, err := a.open(root, "cn1.log")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	open(ownership{mode: 0o600}, "one\n")
	check(path, os.Geteuid(), os.Getegid(), 0o600)
	open(ownership{user: itoa(uid), group: itoa(gid), mode: 0o664}, "two\n") // a umask of 022 would take the 2
	check(path, uid, gid, 0o664)
	open(ownership{}, "three\n")
	check(path, uid, gid, 0o664) // nobody said that it changes
	open(ownership{group: itoa(gid), mode: 0o640}, "four\n")
	check(path, uid, gid, 0o640)
	if b, err := os.ReadFile(path); err != nil || string(b) != "one\ntwo\nthree\nfour\n" {
		t.Errorf("%q, %v", b, err)
	}
	away := path + ".20261125T120000.000"
	if err := os.Rename(path, away); err != nil {
		t.Fatal(err)
	}
	if err := compress(t.Context(), root, filepath.Base(away)); err != nil {
		t.Fatal(err)
	}
	check(away+zstSuffix, uid, gid, 0o640)
	if _, err := os.Stat(away); !os.IsNotExist(err) {
		t.Errorf("what was compressed is there: %v", err)
	}
}

// TestAnOwnerIsANameOrANumber of this node; what a cluster file says of it is
// read on others, too.
func TestAnOwnerIsANameOrANumber(t *testing.T) {
	if a, err := (ownership{user: "root", group: "root"}).find(); err != nil || a != (access{}) {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := (ownership{user: "4294967294"}).find(); err != nil || a != (access{uid: 4294967294, gid: -1}) {
		t.Errorf("%+v, %v", a, err)
	}
	for _, test := range []struct {
		o    ownership
		want string
	}{{ownership{user: "no-such-user-here"}, "logs.files.owner: "}, {ownership{group: "no-such-group-here"}, "logs.files.group: "}} {
		if _, err := test.o.find(); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%+v: %v", test.o, err)
		}
	}
	for section, want := range map[string]ownership{
		`{hosts: 5}`:                            {},
		`{files: {group: adm}}`:                 {group: "adm", mode: 0o640},
		`{files: {owner: "104"}}`:               {user: "104", mode: 0o640},
		`{files: {mode: "0600"}}`:               {mode: 0o600},
		`{files: {owner: syslog, mode: "644"}}`: {user: "syslog", mode: 0o644},
	} {
		if got := settingsOf(t, section).owner; got != want {
			t.Errorf("%s: %+v, want %+v", section, got, want)
		}
	}
}

// TestAnUnknownGroupHoldsNoSenderUp: lines are acknowledged and wait in the
// journal, and a condition says what is wrong.
func TestAnUnknownGroupHoldsNoSenderUp(t *testing.T) {
	s, dir, board := prepare(t)
	s.settings.owner = ownership{group: "no-such-group-here", mode: 0o640}
	run(t, s)
	if err := numberedLines(s, "cn1", 10); err != nil {
		t.Fatal(err)
	}
	raised(t, board, conditionOutput+"files", true)
	for _, c := range board.Conditions() {
		if c.Name == conditionOutput+"files" && !strings.Contains(c.Message, "logs.files.group: group: unknown group no-such-group-here") {
			t.Error(c.Message)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "hosts", "cn1"+fileSuffix)); !os.IsNotExist(err) {
		t.Errorf("there is a file of nobody's: %v", err)
	}
}

// TestFoldersLetThoseInWhoMayReadTheFiles: those that are made, the files' own
// among them, and not those that were there. It fails if folders have neither the
// files' group nor a mode of their own, or if a power cut can take the name of one.
func TestFoldersLetThoseInWhoMayReadTheFiles(t *testing.T) {
	uid, gid := strangers()
	for _, test := range []struct {
		o    ownership
		gid  int
		want os.FileMode
	}{
		{ownership{mode: 0o600}, os.Getegid(), 0o700},
		{ownership{group: itoa(gid), mode: 0o640}, gid, 0o750},
		{ownership{group: itoa(gid), mode: 0o664}, gid, 0o755},
		{ownership{mode: 0o604}, os.Getegid(), 0o705},
		{ownership{user: itoa(uid), mode: 0o600}, os.Getegid(), 0o755},
	} {
		a, err := test.o.find()
		if err != nil {
			t.Fatal(err)
		}
		there := t.TempDir()
		before, err := os.Stat(there)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(there, "holdfast", "hosts")
		var synced []string
		sync := func(root *os.Root, name string) error {
			synced = append(synced, filepath.Join(root.Name(), name))
			return syncFolder(root, name)
		}
		if err := a.makeDir(dir+"/", sync); err != nil || !slices.Equal(synced, []string{filepath.Dir(dir), there}) {
			t.Fatalf("%q are synced, %v", synced, err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for _, name := range []string{"2026/11/cn1.log", "2026/12/cn1.log"} {
			file, _, err := a.open(root, name)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
		}
		for _, name := range []string{"..", ".", "2026", "2026/11", "2026/12"} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if u, g := ownerOf(info); u != os.Geteuid() || g != test.gid || info.Mode().Perm() != test.want {
				t.Errorf("%+v: %s is of %d:%d with mode %v, want the process's, %d and %v", test.o, name, u, g, info.Mode().Perm(), test.gid, test.want)
			}
		}
		after, err := os.Stat(there)
		if err == nil {
			err = a.makeDir(there, sync)
		}
		if len(synced) != 2 {
			t.Errorf("nothing was made, and %q are synced", synced[2:])
		}
		if err != nil || after.Mode() != before.Mode() {
			t.Errorf("what was there has %v, and had %v (%v)", after.Mode(), before.Mode(), err)
		}
	}
}

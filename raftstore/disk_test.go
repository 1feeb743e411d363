package raftstore

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/state"
)

// The script says, a look a line, when (seconds), what was seen (free MiB of
// 1000, or a trouble in words), and how fit the disk then counts.
func TestDiskJudgeFollowsItsScript(t *testing.T) {
	file, err := os.Open("testdata/disk.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	j := &diskJudge{calm: 5 * time.Second}
	for lines, n := bufio.NewScanner(file), 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if strings.TrimSpace(text) == "" {
			continue
		}
		event, want, ok := strings.Cut(text, "->")
		var at int
		var what string
		if _, err := fmt.Sscan(event, &at, &what); err != nil || !ok {
			t.Fatalf("line %d: %q: %v", n, text, err)
		}
		l := look{Size: 1000 << 20}
		if _, err := fmt.Sscan(what, &l.Free); err != nil {
			l.Trouble, l.Size = what, 0
		}
		l.Free <<= 20
		j.step(l, time.Unix(int64(at), 0))
		if got := j.state.String(); got != strings.TrimSpace(want) {
			t.Errorf("line %d: %s: the disk is %s (%s), want %s", n, strings.TrimSpace(event), got, j.why, want)
		}
		if (j.why == "") != (j.state == diskFit) {
			t.Errorf("line %d: %v because %q", n, j.state, j.why)
		}
	}
}

func TestUnfitDisksVoteIsSparedOnlyIfTheOthersCarryOn(t *testing.T) {
	for name, c := range map[string]struct {
		voters int
		raft   string
		disks  string // ID=fitness
		want   string
	}{
		"a sick follower gives its vote":                      {3, "fb1/a!+ fb2/b+ fb3/c+", "c=2", "demote fb3 c"},
		"then the warm one has it":                            {3, "fb1/a!+ fb2/b+ fb3/c fb4/d", "c=2", "promote fb4 d"},
		"the sick one is not promoted":                        {3, "fb1/a!+ fb2/b+ fb3/c", "c=2", ""},
		"the low one is not promoted":                         {3, "fb1/a!+ fb2/b+ fb3/c", "c=1", ""},
		"fit again it gets it back":                           {3, "fb1/a!+ fb2/b+ fb3/c", "c=0", "promote fb3 c"},
		"a low follower gives its vote":                       {3, "fb1/a!+ fb2/b+ fb3/c+", "b=1", "demote fb2 b"},
		"sick before low":                                     {3, "fb1/a!+ fb2/b+ fb3/c+ fb4/d+", "b=1 d=2", "demote fb4 d"},
		"two low of three: the rest would stand on one":       {3, "fb1/a!+ fb2/b+ fb3/c+", "b=1 c=1", ""},
		"all low: all keep their votes":                       {3, "fb1/a!+ fb2/b+ fb3/c+", "a=1 b=1 c=1", ""},
		"all sick: all keep their votes":                      {3, "fb1/a!+ fb2/b+ fb3/c+", "a=2 b=2 c=2", ""},
		"one sick among low ones":                             {3, "fb1/a!+ fb2/b+ fb3/c+", "a=1 b=1 c=2", "demote fb3 c"},
		"one sick, another down: no majority would stay":      {3, "fb1/a!+ fb2/b+~ fb3/c+", "c=2", ""},
		"a sick one that is down says nothing about its disk": {3, "fb1/a!+ fb2/b+ fb3/c+~", "c=2", ""},
		"two servers, one sick: the other goes on alone":      {2, "fb1/a!+ fb2/b+", "b=2", "demote fb2 b"},
		"two servers, one low: two copies are worth more":     {2, "fb1/a!+ fb2/b+", "b=1", ""},
		"five servers, the second gives its vote":             {5, "fb1/a!+ fb2/b+ fb3/c+ fb4/d+", "d=2", "demote fb4 d"},
		"five servers, three votes stay":                      {5, "fb1/a!+ fb2/b+ fb3/c+", "c=2", ""},
		"the leader never takes its own":                      {3, "fb1/a!+ fb2/b+ fb3/c+", "a=2", ""},
	} {
		v := diskView(t, c.voters, c.raft, c.disks)
		got := ""
		if next, _ := plan(v); next != nil {
			got = fmt.Sprintf("%s %s %s", next.Kind, next.Server.Name, next.Server.ID)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func diskView(t *testing.T, voters int, raft, disks string) view {
	t.Helper()
	v := parseView(t, voters, raft, "fb1/a fb2/b fb3/c fb4/d")
	v.Gossip = slices.DeleteFunc(v.Gossip, func(m state.Member) bool { return !v.has(m.ID) })
	v.Disks = map[string]fitness{}
	for _, word := range strings.Fields(disks) {
		id, f, _ := strings.Cut(word, "=")
		v.Disks[id] = fitness(f[0] - '0')
	}
	return v
}

func TestLeaderWithABadDiskGivesWayOnlyToABetterOne(t *testing.T) {
	for name, c := range map[string]struct{ raft, disks, want string }{
		"a sick leader":                       {"fb1/a!+ fb2/b+ fb3/c+", "a=2", "fb2"},
		"a low leader, the first is low too":  {"fb1/a!+ fb2/b+ fb3/c+", "a=1 b=1", "fb3"},
		"all are low":                         {"fb1/a!+ fb2/b+ fb3/c+", "a=1 b=1 c=1", ""},
		"a sick leader among low ones":        {"fb1/a!+ fb2/b+ fb3/c+", "a=2 b=1 c=1", "fb2"},
		"who does not answer is no heir":      {"fb1/a!+ fb2/b+~ fb3/c+", "a=2", "fb3"},
		"a server without a vote is no heir":  {"fb1/a!+ fb2/b", "a=2", ""},
		"a low leader, the other one is sick": {"fb1/a!+ fb2/b+", "a=1 b=2", ""},
	} {
		heir, found := diskView(t, 3, c.raft, c.disks).heir()
		if heir.Name != c.want || found != (c.want != "") {
			t.Errorf("%s: %q %v, want %q", name, heir.Name, found, c.want)
		}
	}
}

func TestBiggestConsumerIsShedFirst(t *testing.T) {
	type asked struct {
		Name string
		Want int64
	}
	var log []asked
	consumer := func(name string, bytes, gives int64) Consumer {
		return Consumer{Name: name, Bytes: func() int64 { return bytes }, Shed: func(want int64) int64 {
			log = append(log, asked{name, want})
			return min(gives, want)
		}}
	}
	list := []Consumer{consumer("small", 10, 10), consumer("big", 500, 30), consumer("pinned", 700, 0), consumer("middle", 100, 100)}
	freed, names := shed(list, 60)
	if diff := cmp.Diff([]asked{{"pinned", 60}, {"big", 60}, {"middle", 30}}, log); diff != "" {
		t.Error(diff)
	}
	if freed != 60 || !slices.Equal(names, []string{"big", "middle"}) {
		t.Errorf("freed %d by %v", freed, names)
	}
}

func TestScheduledSnapshotsAreShedButTheNewest(t *testing.T) {
	c := Config{Cluster: "foobar", Node: "fb1", DataDir: t.TempDir(), Backups: Backups{Directory: t.TempDir()}}
	if err := os.MkdirAll(c.dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"20260101T000000Z", "20260103T000000Z", "20260102T000000Z"} {
		name := backupPrefix + "foobar-" + at + backupSuffix
		if err := os.WriteFile(filepath.Join(c.Backups.Directory, name), make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one := c.backupsAsConsumer()
	if got := one.Bytes(); got != 200 {
		t.Errorf("%d bytes can be had back, want 200", got)
	}
	if got := one.Shed(50); got != 100 {
		t.Errorf("%d bytes were freed of 50, want the oldest's 100", got)
	}
	if got := one.Shed(1000); got != 100 {
		t.Errorf("%d bytes were freed of 1000, want 100", got)
	}
	there, err := c.listBackups(time.Now())
	if err != nil || len(there) != 1 || there[0].at.Day() != 3 {
		t.Errorf("there are %v, %v; want the newest", there, err)
	}
}

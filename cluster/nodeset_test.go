package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The table was made by ClusterShell itself.
func TestNodeSetsMeanWhatClusterShellMakesOfThem(t *testing.T) {
	data, err := os.ReadFile("testdata/clustershell.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		columns := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		set, folded, expanded := columns[0], columns[1], columns[2]
		got, err := Expand(set, nil)
		if folded == "error" {
			if err == nil {
				t.Errorf("%s: ClusterShell refuses it, we read %q", set, got)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", set, err)
			continue
		}
		if number, ok := strings.CutPrefix(expanded, "#"); ok && number != fmt.Sprint(len(got)) {
			t.Errorf("%s: %d members, want %s", set, len(got), number)
		} else if want := strings.Fields(expanded); !ok && !sameSet(got, want) {
			t.Errorf("%s: %q, want %q", set, got, want)
		}
		if got := Fold(got); !sameSet(parts(got), parts(folded)) {
			t.Errorf("%s: folded %s, want %s", set, got, folded)
		}
	}
}

func parts(folded string) []string {
	list, _, _ := split(folded, ",")
	return list
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func TestMembersKeepTheOrderWritten(t *testing.T) {
	got, err := Expand("n[3,1-2],a,n3!n1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"n3", "n2", "a"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestFoldedListKeepsOrderAndRepetitions(t *testing.T) {
	tests := map[string][]string{
		"10.1.0.[2,1,1],10.1.0.9":          {"10.1.0.2", "10.1.0.1", "10.1.0.1", "10.1.0.9"},
		"aa:bb:cc:dd:ee:[00,0a,ff]":        {"aa:bb:cc:dd:ee:00", "aa:bb:cc:dd:ee:0a", "aa:bb:cc:dd:ee:ff"},
		"aa:bb:cc:dd:ee:[00,02-03]":        {"aa:bb:cc:dd:ee:00", "aa:bb:cc:dd:ee:02", "aa:bb:cc:dd:ee:03"},
		"fd00:1::[1-2]":                    {"fd00:1::1", "fd00:1::2"},
		"[161-163]":                        {"161", "162", "163"},
		"10.[1-2].0.[1-2]":                 {"10.1.0.1", "10.1.0.2", "10.2.0.1", "10.2.0.2"},
		"ttyS[0-1]":                        {"ttyS0", "ttyS1"},
		"/dev/disk/by-id/wwn-0x[01,02]-p1": {"/dev/disk/by-id/wwn-0x01-p1", "/dev/disk/by-id/wwn-0x02-p1"},
	}
	for list, want := range tests {
		got, err := ExpandList(list)
		if err != nil {
			t.Errorf("%s: %v", list, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", list, diff)
		}
	}
}

func TestGroups(t *testing.T) {
	groups := func(name string) ([]string, error) {
		switch name {
		case "service":
			return []string{"fb1", "fb2", "fb3"}, nil
		case "rack1":
			return []string{"fb1"}, nil
		case "rack2":
			return []string{"fb2", "fb1"}, nil
		}
		return nil, errors.New("no group " + name)
	}
	tests := []struct{ set, want string }{
		{"@service", "fb1 fb2 fb3"},
		{"@service!fb2", "fb1 fb3"},
		{"@service&@rack1", "fb1"},
		{"@rack[1-2]", "fb1 fb2"},
		{"x,@rack2", "x fb2 fb1"},
		{"@nothing", "error: no group nothing"},
		{"@", "error: empty name"},
	}
	for _, test := range tests {
		members, err := Expand(test.set, groups)
		got := strings.Join(members, " ")
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != test.want {
			t.Errorf("%s: %s, want %s", test.set, got, test.want)
		}
	}
	if _, err := Expand("@service", nil); err == nil {
		t.Error("a group without groups is no error")
	}
}

func TestSetsTooLargeAreRefusedNotMade(t *testing.T) {
	large := strings.Repeat("x", 250)
	for _, set := range []string{
		"n[1-65537]", "n[1-999999999999999999]", "r[1-300]n[1-300]", "n[1-65536],m1", "n[1-40000]!n[1-40000]",
		strings.Repeat("a[0-9]", 20), large + "[1000000-1000001]", "n[1-1000000000000000000000]",
		strings.Repeat("n,", 40000) + "n", "[" + strings.Repeat("0", 70000) + "1]",
	} {
		if _, err := Expand(set, nil); err == nil {
			t.Errorf("%s: no error", clip(set))
		}
		if _, err := ExpandList(set); err == nil {
			t.Errorf("%s: no error as a list", clip(set))
		}
	}
	if got, err := Expand("n[1-65536]", nil); err != nil || len(got) != MaxItems {
		t.Errorf("%d members, %v", len(got), err)
	}
}

func TestNamesThatNoSetMayHoldAreRefused(t *testing.T) {
	for _, set := range []string{"a b", "n[1]é", "a\x00b", "n[-1]", "n[1--2]", "a@b", "n[1,]", "n[/2]", "n[ ]"} {
		if got, err := Expand(set, nil); err == nil {
			t.Errorf("%q: %q", set, got)
		}
	}
	if _, err := ExpandList("aa:bb:[0a-0f]"); err == nil {
		t.Error("a hexadecimal range is no error; it would be read as decimal")
	}
}

func TestFold(t *testing.T) {
	tests := []struct{ names, want string }{
		{"n1n1 n1n2 n2n1 n2n2", "n[1-2]n[1-2]"},
		{"n1 n01 n2 n02", "n[1-2,01-02]"},
		{"n9 n10 n11", "n[9-11]"},
		{"n09 n10 n11", "n[09-11]"},
		{"n98 n99 n100", "n[98-100]"},
		{"n098 n099 n100", "n[098-100]"},
		{"n99 n099 n100", "n[99,099-100]"},
		{"x z y x", "x,y,z"},
		{"node2-ib0 node1-ib0", "node[1-2]-ib0"},
		{"n0 n00 n000", "n[0,00,000]"},
		{"n10 n1 n2", "n[1-2,10]"},
		{"n1111111111111111111 n1111111111111111112", "n1111111111111111111,n1111111111111111112"},
		{"", ""},
	}
	for _, test := range tests {
		if got := Fold(strings.Fields(test.names)); got != test.want {
			t.Errorf("%s: %s, want %s", test.names, got, test.want)
		}
	}
}

// randomNames makes names of few shapes with numbers near each other, padded
// or not, so that there is much to fold.
func randomNames(r *rand.Rand) []string {
	shapes := []string{"n%s", "r%sn%s", "%s", "a%s-ib%sx", "host"}
	names := make([]string, r.IntN(60))
	for i := range names {
		shape := shapes[r.IntN(len(shapes))]
		var numbers []any
		for range strings.Count(shape, "%s") {
			numbers = append(numbers, fmt.Sprintf("%0*d", 1+r.IntN(3), r.IntN(13)*(1+r.IntN(2)*8)))
		}
		names[i] = fmt.Sprintf(shape, numbers...)
	}
	return names
}

func TestFoldedSetsExpandToTheSameNames(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		names := randomNames(r)
		folded := Fold(names)
		got, err := Expand(folded, nil)
		if err != nil {
			t.Fatalf("%q: folded %s: %v", names, folded, err)
		}
		if !sameSet(got, newNodes(names).list()) {
			t.Fatalf("%q: folded %s, which is %q", names, folded, got)
		}
		if again := Fold(got); again != folded {
			t.Fatalf("%q: folded %s, then %s", names, folded, again)
		}
	}
}

func FuzzNodeSet(f *testing.F) {
	for _, seed := range []string{"fbservice[1-4]", "r[1-2]n[01-04]!r1n02&a^b", "@role,n[0-8/2]", "aa:[0a,00-09]", "n[098-101,1,01]", "[1]a[2]", "n[1-65536]"} {
		f.Add(seed)
	}
	groups := func(name string) ([]string, error) { return []string{name, "g1", "g2"}, nil }
	f.Fuzz(func(t *testing.T, set string) {
		names, err := Expand(set, groups)
		if err == nil {
			if len(names) > MaxItems {
				t.Fatalf("%d members", len(names))
			}
			if len(names) > 2000 {
				names = names[:2000]
			}
			folded := Fold(names)
			again, err := Expand(folded, nil)
			if len(folded) <= maxSetLength && (err != nil || !sameSet(again, names)) {
				t.Fatalf("%q: folded %q is %q (%v)", set, folded, again, err)
			}
		}
		if items, err := ExpandList(set); err == nil && (len(items) == 0 || len(items) > MaxItems) {
			t.Fatalf("%q: list of %d items", set, len(items))
		}
	})
}

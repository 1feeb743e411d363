package dns

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const oursToCompare = "hpc.example.com. 300 IN SOA a. b. 1 2 3 4 5\nhpc.example.com. 300 IN NS fbservice1.hpc.example.com.\n" +
	"fbservice1.hpc.example.com. 300 IN A 10.1.0.1\nfbservice2.hpc.example.com. 300 IN A 10.1.0.2\nsix.hpc.example.com. 300 IN AAAA fd00::6\n" +
	"www.hpc.example.com. 300 IN CNAME fbservice1.hpc.example.com.\n"

func TestDriftFromAZoneFile(t *testing.T) {
	same := "$ORIGIN hpc.example.com.\n$TTL 60\n@ SOA x y 9 9 9 9 9\n@ NS FBservice1\nfbservice1 A 10.1.0.1\nFBSERVICE2 A 10.1.0.2\nsix AAAA fd00:0::6\nwww CNAME fbservice1\n"
	got, err := CompareZone(oursToCompare, strings.NewReader(same), "hpc.example.com")
	if err != nil || !got.IsEmpty() {
		t.Errorf("the same zone: %+v, %v", got, err)
	}
	other := strings.Replace(same, "10.1.0.2", "10.1.0.3", 1) + "new A 10.1.0.9\n"
	got, err = CompareZone(oursToCompare, strings.NewReader(other), "hpc.example.com")
	want := Drift{
		Missing: []string{"fbservice2.hpc.example.com. A 10.1.0.3", "new.hpc.example.com. A 10.1.0.9"},
		Extra:   []string{"fbservice2.hpc.example.com. A 10.1.0.2"},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := CompareZone(oursToCompare, strings.NewReader("nonsense"), "hpc.example.com"); err == nil {
		t.Error("no error for what is no zone file")
	}
}

func TestDriftFromAHostsFile(t *testing.T) {
	hosts := "127.0.0.1 localhost fbservice1\n10.1.0.1 fbservice1 FBservice1.hpc.example.com # the first\n10.1.0.9 fbservice2\n" +
		"192.0.2.1 www.example.org\nfd00::6 six\nff02::1 allnodes\nnonsense\n"
	got, err := CompareHosts(oursToCompare, strings.NewReader(hosts), "hpc.example.com")
	want := Drift{Missing: []string{"fbservice2.hpc.example.com. A 10.1.0.9"}, Extra: []string{"fbservice2.hpc.example.com. A 10.1.0.2"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestDriftFromAnotherServer(t *testing.T) {
	f, server := startPrimary(t, "allow: [127.0.0.1]", "www CNAME fbservice1")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	text, _ := f.server.ZoneText("hpc.example.com")
	if got, err := CompareServer(ctx, text, "hpc.example.com", server); err != nil || !got.IsEmpty() {
		t.Errorf("itself: %+v, %v", got, err)
	}
	got, err := CompareServer(ctx, strings.Replace(text, "10.1.0.2\n", "10.1.0.222\n", 1), "hpc.example.com", server)
	want := Drift{Missing: []string{"fbservice2.hpc.example.com. A 10.1.0.2"}, Extra: []string{"fbservice2.hpc.example.com. A 10.1.0.222"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := CompareServer(ctx, text, "example.org", server); err == nil {
		t.Error("no error for a zone that is refused")
	}
}

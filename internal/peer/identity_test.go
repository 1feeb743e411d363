package peer

import (
	"net/url"
	"strings"
	"testing"
)

func TestIdentityHasExactlyOneSpelling(t *testing.T) {
	good := "holdfast://foobar/server/fb1"
	for text, ok := range map[string]bool{
		good:                                  true,
		"holdfast://foo-bar.2/admin/al_ice":   true,
		"holdfast://foobar/ca/foobar":         true,
		"holdfast://foobar/server/":           false,
		"holdfast://foobar/server":            false,
		"holdfast:///server/fb1":              false,
		"holdfast://foobar/root/fb1":          false,
		"holdfast://foobar/server/fb1/":       false,
		"holdfast://foobar/server/a/b":        false,
		"holdfast://foobar/server/%66b1":      false,
		"holdfast://foobar/server/fb1?x=1":    false,
		"holdfast://foobar/server/fb1#x":      false,
		"holdfast://u@foobar/server/fb1":      false,
		"holdfast://foobar:1/server/fb1":      false,
		"https://foobar/server/fb1":           false,
		"holdfast://foobar//server/fb1":       false,
		"holdfast://foobar/server/-fb1":       false,
		"holdfast://foobar/server/fb..1":      false,
		"holdfast://foobar/Server/fb1":        false,
		"holdfast://foo%20bar/server/fb1":     false,
		"holdfast:foobar/server/fb1":          false,
		good + strings.Repeat("x", maxName+1): false,
	} {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		id, err := parseIdentity(u)
		if (err == nil) != ok {
			t.Errorf("%s: identity %+v, error %v; want accepted: %v", text, id, err, ok)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("holdfast://foobar/server/fb1")
	f.Add("holdfast://foobar/ca/foobar")
	f.Add("holdfast://a:1@b/admin/%2e%2e")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		id, err := parseIdentity(u)
		if err != nil {
			return
		}
		again, err := url.Parse(id.uri().String())
		if err != nil {
			t.Fatalf("%+v gives a URI that cannot be parsed: %v", id, err)
		}
		if back, err := parseIdentity(again); err != nil || back != id {
			t.Fatalf("%q: %+v became %+v, %v", text, id, back, err)
		}
		if u.Host != id.Cluster || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			t.Fatalf("%q has two meanings: %+v", text, id)
		}
	})
}

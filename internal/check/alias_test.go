package check

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/state"
)

// catalog has node one with the services web and db, and node two; checks are
// "node/service": status.
func catalog(t *testing.T, checks map[string]state.Status) *state.Snapshot {
	t.Helper()
	store := state.New()
	index := uint64(0)
	for _, name := range []string{"one", "two"} {
		r := state.Register{Node: state.Node{Name: name, Address: netip.MustParseAddr("10.1.0.1")}}
		for _, service := range []string{"web", "db"} {
			if name == "one" {
				r.Services = append(r.Services, state.Service{Node: name, ID: service, Name: service})
			}
		}
		for _, c := range []struct{ id, service, kind string }{
			{"health", "", "tcp"}, {"web", "web", "http"}, {"db", "db", "tcp"}, {"db-alias", "db", "alias"},
		} {
			if status, ok := checks[name+"/"+c.id]; ok {
				r.Checks = append(r.Checks, state.Check{Node: name, ID: c.id, Name: c.id, ServiceID: c.service, Status: status, Type: c.kind})
			}
		}
		index++
		if err := store.Apply(index, r); err != nil {
			t.Fatal(err)
		}
	}
	return store.Snapshot()
}

func TestAliasIsAsBadAsTheWorstOfWhatItNames(t *testing.T) {
	const passes, warns, fails = state.Passing, state.Warning, state.Critical
	for name, test := range map[string]struct {
		alias  Alias
		checks map[string]state.Status
		want   state.Status
		part   string
	}{
		"all pass":               {Alias{Service: "web"}, map[string]state.Status{"one/health": passes, "one/web": passes}, passes, "service web on one: passing"},
		"the service warns":      {Alias{Service: "web"}, map[string]state.Status{"one/web": warns}, warns, "web is warning"},
		"the service fails":      {Alias{Service: "web"}, map[string]state.Status{"one/web": fails, "one/health": warns}, fails, "web is critical"},
		"its node fails":         {Alias{Service: "web"}, map[string]state.Status{"one/web": passes, "one/health": fails}, fails, "health is critical"},
		"another service fails":  {Alias{Service: "web"}, map[string]state.Status{"one/web": passes, "one/db": fails}, passes, ""},
		"another node fails":     {Alias{Service: "web"}, map[string]state.Status{"one/web": passes, "two/health": fails}, passes, ""},
		"another alias fails":    {Alias{Service: "db"}, map[string]state.Status{"one/db": passes, "one/db-alias": fails}, passes, ""},
		"a node":                 {Alias{Node: "two"}, map[string]state.Status{"two/health": fails}, fails, "node two"},
		"a node's services":      {Alias{Node: "one"}, map[string]state.Status{"one/web": fails}, passes, ""},
		"a service without any":  {Alias{Service: "db"}, nil, passes, ""},
		"a service that is gone": {Alias{Service: "gone"}, nil, fails, "service gone on one: is not in the catalog"},
		"a node that is gone":    {Alias{Node: "three"}, nil, fails, "node three: is not in the catalog"},
		"on the wrong node":      {Alias{Node: "two", Service: "web"}, nil, fails, "is not in the catalog"},
	} {
		t.Run(name, func(t *testing.T) {
			s := catalog(t, test.checks)
			p := NewAliasProbe(Definition{Alias: &test.alias}, "one", func() (*state.Snapshot, bool) { return s, true })
			expect(t, p.Probe(t.Context()), test.want, test.part)
		})
	}
}

// Right after a start the replica is empty: that must not take an alias down.
func TestAliasSaysNothingWhileTheCatalogIsNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, looks := catalog(t, nil), 0
		b := newBench(nil)
		b.deps.NewProbe = func(d Definition, _ Commander) (Probe, error) {
			return NewAliasProbe(d, "one", func() (*state.Snapshot, bool) {
				looks++
				return s, looks > 1 // known from the second time on
			}), nil
		}
		err := b.Set([]Definition{{ID: "a", Alias: &Alias{Service: "web"}, Interval: MinInterval, Initial: state.Passing}})
		if err != nil {
			t.Fatal(err)
		}
		stop := b.run(t)
		time.Sleep(10 * MinInterval) // virtual
		stop()
		if got := b.reported(); looks < 2 || len(got) != 1 || !strings.HasPrefix(got[0], "a passing ") {
			t.Errorf("%d looks, reported %v", looks, got)
		}
	})
}

func TestParseAlias(t *testing.T) {
	for text, want := range map[string]Alias{
		"web": {Service: "web"}, "web@two": {Node: "two", Service: "web"}, "@two": {Node: "two"},
	} {
		if got, err := parseAlias(text); err != nil || *got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "@", "a b", "a@b@c", "a\n"} {
		if got, err := parseAlias(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

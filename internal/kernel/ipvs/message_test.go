package ipvs

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink/nl"
)

// answer is what the kernel would tell of what we say: the attributes are the
// same in both directions.
func answer(a *nl.RtAttr) []byte { return append(make([]byte, nl.SizeofGenlmsg), a.Serialize()...) }

func TestWhatIsSaidOfAServiceIsReadBackTheSame(t *testing.T) {
	for _, s := range []Service{
		ssh(),
		{Key: ByAddr(UDP, at("[fd00::100]:53")), Scheduler: "sh", Flags: Fallback | Port, Persistence: time.Hour, Granularity: 64},
		{Key: ByMark(4294967295, true), Scheduler: "mh", Flags: OnePacket},
		{Key: ByMark(1, false), Scheduler: "rr", Granularity: 24, Persistence: time.Second, Engine: "sip"},
	} {
		got, ok := parseService(answer(serviceAttr(s.normal())))
		if diff := cmp.Diff(s.normal(), got.Service, cmpopts.EquateComparable(Key{})); !ok || diff != "" {
			t.Errorf("%v: ok %v\n%s", s.Key, ok, diff)
		}
	}
}

func TestWhatIsSaidOfAServerIsReadBackTheSame(t *testing.T) {
	for _, r := range []Server{
		{Addr: at("10.1.0.1:22"), Method: Route, Weight: 65535, Upper: 100, Lower: 75},
		{Addr: at("[fd00::1]:0"), Method: Tunnel},
	} {
		if got, _, ok := parseServer(answer(serverAttr(r))); !ok || got != r {
			t.Errorf("%+v is read as %+v, ok %v", r, got, ok)
		}
	}
	d := Daemon{Backup, "eth0", 255}
	if got, ok := parseDaemon(answer(daemonAttr(d))); !ok || got != d {
		t.Errorf("%+v is read as %+v, ok %v", d, got, ok)
	}
}

// Whatever stands in an answer, reading it neither panics nor gives what could
// not be said again.
func FuzzAnswers(f *testing.F) {
	f.Add(answer(serviceAttr(ssh().normal())))
	f.Add(answer(serverAttr(servers("10.1.0.1:22")[0])))
	f.Add(answer(daemonAttr(Daemon{Master, "eth0", 1})))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, ok := parseService(b); ok {
			o.Scheduler, o.Engine = "rr", ""
			again, ok := parseService(answer(serviceAttr(o.Service.normal())))
			if !ok || again.Key != o.Key || again.Flags != o.Flags || again.Persistence != o.Persistence {
				t.Errorf("%+v is said as %+v, ok %v", o.Service, again.Service, ok)
			}
		}
		if r, _, ok := parseServer(b); ok {
			if again, _, ok := parseServer(answer(serverAttr(r))); !ok || again != r {
				t.Errorf("%+v is said as %+v, ok %v", r, again, ok)
			}
		}
		parseDaemon(b)
		parseFamily(b)
	})
}

// Whatever stands in the journal, what is read of it is written so that it is
// read the same.
func FuzzJournal(f *testing.F) {
	f.Add([]byte("boot 1 tcp 10.1.0.1:22\nboot 1 mark6 7\nboot 1 daemon master\nother 1 udp [::1]:53\nbroken\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		first := &journal{at: origin{"boot", 1}}
		first.parse(b)
		second := &journal{at: first.at}
		if broken := second.parse(first.format()); broken != 0 || !cmp.Equal(first.keys, second.keys, cmpopts.EquateComparable(Key{})) || !cmp.Equal(first.daemons, second.daemons) {
			t.Errorf("%v is written as %q", first, first.format())
		}
	})
}

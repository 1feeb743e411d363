package ipvs

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"holdfast/internal/runfile"
)

// answer is what the kernel would tell of what we say: the attributes are the
// same in both directions.
func answer(a *nl.RtAttr) []byte { return append(make([]byte, nl.SizeofGenlmsg), a.Serialize()...) }

func TestWhatIsSaidOfAServiceIsReadBackTheSame(t *testing.T) {
	for _, s := range []Service{
		ssh(),
		{Key: ByAddr(UDP, at("[fd00::100]:53")), Scheduler: "sh", Flags: Fallback | Port, Persistence: time.Hour, Granularity: 64},
		{Key: ByMark(4294967295, true), Scheduler: "mh", Flags: OnePacket},
		{Key: ByMark(1, false), Scheduler: "rr", Granularity: 24, Persistence: time.Second},
	} {
		want := s.normal()
		want.Servers = nil
		got, err := ourService(theirService(s.normal()))
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(Key{})); err != nil || diff != "" {
			t.Errorf("%v: %v\n%s", s.Key, err, diff)
		}
	}
}

func TestANumberThatTheKernelKeepsIsNoPersistence(t *testing.T) {
	theirs := theirService(ssh().normal())
	theirs.Flags &^= uint32(persistent)
	if got, err := ourService(theirs); err != nil || got.Persistence != 0 {
		t.Errorf("without the flag: persistent for %v, %v", got.Persistence, err)
	}
}

func TestWhatIsSaidOfAServerIsReadBackTheSame(t *testing.T) {
	for _, r := range []Server{
		{Addr: at("10.1.0.1:22"), Method: Route, Weight: 65535, Upper: 100, Lower: 75},
		{Addr: at("[fd00::1]:0"), Method: Tunnel},
	} {
		if got, err := ourServer(theirServer(r)); err != nil || got != r {
			t.Errorf("%+v is read as %+v, %v", r, got, err)
		}
	}
	d := Daemon{Backup, "eth0", 255}
	if got, ok := parseDaemon(answer(daemonAttr(d))); !ok || got != d {
		t.Errorf("%+v is read as %+v, ok %v", d, got, ok)
	}
}

// told is what the kernel tells of a server's load.
func told() []byte {
	a := nl.NewRtAttr(attrServer|unix.NLA_F_NESTED, nil)
	a.AddRtAttr(dstAddr, append([]byte{10, 1, 0, 1}, make([]byte, 12)...))
	a.AddRtAttr(dstPort, nl.BEUint16Attr(22))
	a.AddRtAttr(dstFamily, nl.Uint16Attr(unix.AF_INET))
	a.AddRtAttr(dstActive, nl.Uint32Attr(3))
	a.AddRtAttr(dstPersistent, nl.Uint32Attr(7))
	stats := a.AddRtAttr(dstStats64|unix.NLA_F_NESTED, nil)
	stats.AddRtAttr(statConnections, nl.Uint64Attr(1<<33))
	return answer(a)
}

func TestACounterBeyond32BitsIsReadWhole(t *testing.T) {
	who, l, ok := parseLoad(told())
	want := Load{Active: 3, Persistent: 7, Stats: Stats{Connections: 1 << 33}}
	if !ok || who != at("10.1.0.1:22") || l != want {
		t.Errorf("%v has %+v, ok %v; want %+v", who, l, ok, want)
	}
}

// Whatever stands in an answer, reading it does not panic, and gives no server
// without an address.
func FuzzAnswers(f *testing.F) {
	f.Add(told())
	f.Add(answer(keyAttr(ssh().Key)))
	f.Add(answer(daemonAttr(Daemon{Master, "eth0", 1})))
	f.Fuzz(func(t *testing.T, b []byte) {
		if who, _, ok := parseLoad(b); ok && !who.IsValid() {
			t.Errorf("a server without an address, %v", who)
		}
		if d, ok := parseDaemon(b); ok && d.Role != Master && d.Role != Backup {
			t.Errorf("a daemon of the role %v", d.Role)
		}
		parseServiceStats(b)
		parseFamily(b)
	})
}

// kept is a journal in memory.
type kept struct{ text []byte }

func (k *kept) Read(words int, line func([]string, bool) bool) (broken int, err error) {
	return runfile.Origin{Boot: "boot", NetNS: 1}.Parse(k.text, words, line), nil
}

func (k *kept) Write(lines []string) error {
	k.text = nil
	for _, line := range lines {
		k.text = append(k.text, "boot 1 "+line+"\n"...)
	}
	return nil
}

// Whatever stands in the journal, what is read of it is written so that it is
// read the same.
func FuzzJournal(f *testing.F) {
	f.Add([]byte("boot 1 tcp 10.1.0.1:22\nboot 1 mark6 7\nboot 1 daemon master\nother 1 udp [::1]:53\nbroken\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		kept := &kept{text: b}
		first, _, err := openJournal(kept)
		if err != nil {
			t.Fatal(err)
		}
		if err := first.save(); err != nil {
			t.Fatal(err)
		}
		second, broken, err := openJournal(kept)
		if err != nil || broken != 0 || !cmp.Equal(first.keys, second.keys, cmpopts.EquateComparable(Key{})) || !cmp.Equal(first.daemons, second.daemons) {
			t.Errorf("%v is written as %q", first, kept.text)
		}
	})
}

package ipvs

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/runfile"
	"holdfast/lab"
	"holdfast/lab/vm"
)

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}

// All that needs a kernel with IPVS, in one machine. Its module is not loaded
// at boot, so that the first part sees a kernel without.
func TestKernel(t *testing.T) {
	vm.Inside(t, vm.Options{}, func(t *testing.T) {
		t.Run("without the module", testWithoutModule)
		t.Run("daemons", testDaemonsInKernel)
		t.Run("a daemon stopped at once", testDaemonStoppedAtOnce)
		t.Run("ipvsadm sees what was set", testSetAgainstIPVSAdm)
		t.Run("others' services stay", testForeignInKernel)
		t.Run("namespaces", testNamespaces)
		t.Run("large table", testLargeTable)
	})
}

// The kernel loads the module by itself when it is asked for; here it may not.
func testWithoutModule(t *testing.T) {
	const helper = "/proc/sys/kernel/modprobe"
	before, err := os.ReadFile(helper)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(helper, before, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(helper, []byte("/bin/false\n"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/proc/net/ip_vs"); err == nil {
		t.Fatal("this kernel has IPVS already")
	}
	if _, err := Open(); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "ip_vs") {
		t.Errorf("a kernel without IPVS: %v", err)
	}
}

// director is a host with an owner of its tables.
func director(t *testing.T) (*lab.Host, *Handle, *Owner, string) {
	t.Helper()
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	h, err := l.AddHost("director", lab.On("adm", "10.1.0.1/24", "fd00::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	handle, o := adopt(t, h, dir)
	return h, handle, o, dir
}

func adopt(t *testing.T, h *lab.Host, dir string) (handle *Handle, o *Owner) {
	t.Helper()
	err := h.Do(func() (err error) {
		if handle, err = Open(); err != nil {
			return err
		}
		at, err := runfile.Here()
		if err != nil {
			return err
		}
		o, _, err = NewOwner(handle, journalIn(dir, at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(handle.Close)
	return handle, o
}

func ipvsadm(t *testing.T, h *lab.Host, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := h.Run(ctx, append([]string{"ipvsadm"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func testSetAgainstIPVSAdm(t *testing.T) {
	h, _, o, dir := director(t)
	desired := []Service{
		{Key: ByAddr(TCP, at("10.1.0.100:22")), Scheduler: "wlc", Persistence: 600 * time.Second, Granularity: 24,
			Servers: []Server{{Addr: at("10.1.0.2:22"), Method: Route, Weight: 3, Upper: 10, Lower: 5}, {Addr: at("10.1.0.1:22"), Method: Route}}},
		{Key: ByAddr(UDP, at("[fd00::100]:53")), Scheduler: "mh", Flags: Fallback | Port,
			Servers: []Server{{Addr: at("[fd00::2]:53"), Method: Route, Weight: 1}}},
		{Key: ByMark(7, false), Scheduler: "rr", Servers: []Server{{Addr: at("10.1.0.3:0"), Method: Route, Weight: 1}}},
		{Key: ByMark(7, true), Scheduler: "rr", Flags: OnePacket, Servers: []Server{{Addr: at("[fd00::3]:0"), Method: Route, Weight: 1}}},
	}
	if made := set(t, o, desired...); len(made) != 9 {
		t.Errorf("made %v", made)
	}
	rules := ipvsadm(t, h, "-Sn")
	for _, want := range []string{
		"-A -t 10.1.0.100:22 -s wlc -p 600 -M 255.255.255.0",
		"-a -t 10.1.0.100:22 -r 10.1.0.2:22 -g -w 3",
		"-a -t 10.1.0.100:22 -r 10.1.0.1:22 -g -w 0",
		"-A -u [fd00::100]:53 -s mh -b mh-fallback,mh-port",
		"-a -u [fd00::100]:53 -r [fd00::2]:53 -g -w 1",
		"-A -f 7 -s rr",
		"-A -f 7 -6 -s rr -o",
		"-a -f 7 -r 10.1.0.3:0 -g -w 1",
	} {
		if !strings.Contains(rules, want) {
			t.Errorf("ipvsadm does not show %q", want)
		}
	}
	if table := ipvsadm(t, h, "-Ln", "--thresholds", "-t", "10.1.0.100:22"); !slices.Contains(strings.Fields(table), "10") || !slices.Contains(strings.Fields(table), "5") {
		t.Errorf("ipvsadm does not show the thresholds 10 and 5:\n%s", table)
	}
	if t.Failed() {
		t.Logf("it shows\n%s", rules)
	}
	if made := set(t, o, desired...); len(made) != 0 {
		t.Errorf("the second time: %v", made)
	}
	_, successor := adopt(t, h, dir)
	if made := set(t, successor, desired...); len(made) != 0 {
		t.Errorf("a successor: %v", made)
	}
	ipvsadm(t, h, "-e", "-t", "10.1.0.100:22", "-r", "10.1.0.2:22", "-g", "-w", "9")
	ipvsadm(t, h, "-D", "-f", "7")
	if made := set(t, successor, desired...); len(made) != 3 {
		t.Errorf("what somebody spoiled is repaired by %v", made)
	}
	desired[0].Scheduler, desired[0].Persistence, desired[1].Servers = "rr", 0, nil
	if made := set(t, successor, desired[:3]...); len(made) != 3 {
		t.Errorf("a change, a server that goes and a service that goes: %v", made)
	}
	set(t, successor)
	if rules := ipvsadm(t, h, "-Sn"); rules != "" {
		t.Errorf("left over:\n%s", rules)
	}
	if text, err := os.ReadFile(filepath.Join(dir, journalFile)); err != nil || len(text) != 0 {
		t.Errorf("left over in the journal: %q, %v", text, err)
	}
	if _, err := successor.Set([]Service{{Key: ByMark(1, false), Scheduler: "nonesuch"}}); err == nil || !strings.Contains(err.Error(), "ip_vs_nonesuch") {
		t.Errorf("a scheduler that the kernel does not have: %v", err)
	}
}

func testForeignInKernel(t *testing.T) {
	h, _, o, _ := director(t)
	ipvsadm(t, h, "-A", "-t", "10.1.0.50:80", "-s", "rr")
	ipvsadm(t, h, "-a", "-t", "10.1.0.50:80", "-r", "10.1.0.9:80", "-g")
	before := ipvsadm(t, h, "-Sn")
	set(t, o, ssh("10.1.0.2:22"))
	if _, err := o.Set([]Service{{Key: ByAddr(TCP, at("10.1.0.50:80")), Scheduler: "wlc"}}); !errors.Is(err, ErrForeign) {
		t.Errorf("what ipvsadm made is taken: %v", err)
	}
	set(t, o)
	if after := ipvsadm(t, h, "-Sn"); after != before {
		t.Errorf("what ipvsadm made is now\n%s, before it was\n%s", after, before)
	}
	// Our service that another has removed is made again; and one of ours
	// that is gone when we remove it is no error.
	set(t, o, ssh("10.1.0.2:22"))
	ipvsadm(t, h, "-D", "-t", "10.1.0.100:22")
	set(t, o)
}

func testDaemonsInKernel(t *testing.T) {
	h, handle, o, _ := director(t)
	both := []Daemon{{Master, "eth0", 7}, {Backup, "eth0", 7}}
	for i, want := range [][]Daemon{both[:1], both, both, both[1:], {{Backup, "eth0", 8}}} {
		if _, err := o.SetDaemons(want); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if now, err := handle.Daemons(); err != nil || !slices.Equal(now, want) {
			t.Fatalf("step %d: running %v, %v; want %v", i, now, err, want)
		}
	}
	if _, err := o.SetDaemons([]Daemon{{Master, "nowhere0", 1}}); err == nil || !strings.Contains(err.Error(), "nowhere0") {
		t.Errorf("a daemon on no interface: %v", err)
	}
	ipvsadm(t, h, "--start-daemon", "master", "--mcast-interface", "eth0", "--syncid", "3")
	_, fresh := adopt(t, h, t.TempDir())
	if _, err := fresh.SetDaemons([]Daemon{{Master, "eth0", 4}}); !errors.Is(err, ErrForeign) {
		t.Errorf("another's daemon: %v", err)
	}
	if _, err := o.SetDaemons(nil); err != nil {
		t.Fatal(err)
	}
	if now, err := handle.Daemons(); err != nil || !slices.Equal(now, []Daemon{{Master, "eth0", 3}}) {
		t.Errorf("running %v, %v; another's master alone is right", now, err)
	}
}

// Stopped before its thread has run, a daemon ends, and nobody waits for an
// answer that the kernel does not give.
func testDaemonStoppedAtOnce(t *testing.T) {
	_, handle, _, _ := director(t)
	for i := range 100 {
		role := Role(i%2) + Master
		if err := handle.StartDaemon(Daemon{role, "eth0", 7}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := handle.StopDaemon(role); err != nil {
			t.Fatalf("the %v daemon, round %d: %v", role, i, err)
		}
		if took := time.Since(start); took > timeout/2 {
			t.Errorf("the %v daemon, round %d: stopped after %v", role, i, took)
		}
		if now, err := handle.Daemons(); err != nil || len(now) != 0 {
			t.Fatalf("the %v daemon, round %d: running %v, %v", role, i, now, err)
		}
	}
	if err := handle.StopDaemon(Backup); err != nil {
		t.Errorf("one that does not run: %v", err)
	}
}

// A handle stays in the namespace that it was opened in.
func testNamespaces(t *testing.T) {
	a, handleA, ownerA, _ := director(t)
	b, handleB, _, _ := director(t)
	set(t, ownerA, ssh("10.1.0.2:22"))
	list, err := handleA.List()
	if err != nil || len(list) != 1 || len(list[0].Servers) != 1 {
		t.Errorf("%v lists %v, %v", a, list, err)
	}
	if ours, err := ownerA.Ours(); err != nil || len(ours) != 1 || len(ours[0].Loads) != 1 {
		t.Errorf("%v counts %v, %v", a, ours, err)
	}
	if list, err := handleB.List(); err != nil || len(list) != 0 {
		t.Errorf("%v lists %v, %v: that is another's", b, list, err)
	}
}

// Beside ipvsadm -R with the same table in the same machine, at most three
// times as long. Of 30 services with 30 servers each, unless
// HOLDFAST_IPVS_TABLE says otherwise: 100 takes two minutes.
func testLargeTable(t *testing.T) {
	h, _, o, _ := director(t)
	size := 30
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_IPVS_TABLE")); err == nil {
		size = n
	}
	var desired []Service
	for i := range size {
		s := Service{Key: ByAddr(TCP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, 100}), uint16(1000+i))), Scheduler: "wlc"}
		for j := range size {
			s.Servers = append(s.Servers, Server{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 1, byte(j)}), uint16(1000+i)), Method: Route, Weight: 1})
		}
		desired = append(desired, s)
	}
	ours := time.Hour
	for try := range 3 { // the best counts: the machine may stand still
		if try > 0 {
			set(t, o)
		}
		start := time.Now()
		if made := set(t, o, desired...); len(made) != size*(size+1) {
			t.Errorf("%d changes", len(made))
		}
		ours = min(ours, time.Since(start))
	}
	start := time.Now()
	if made := set(t, o, desired...); len(made) != 0 {
		t.Errorf("%d changes of nothing", len(made))
	}
	nothing := time.Since(start)
	desired[size/2].Servers[size/2].Weight = 0
	start = time.Now()
	if made := set(t, o, desired...); len(made) != 1 {
		t.Errorf("a single change is %v", made)
	}
	single := time.Since(start)
	rules := ipvsadm(t, h, "-Sn")
	set(t, o)
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	start = time.Now()
	if out, err := h.RunCmd(t.Context(), lab.Cmd{Args: []string{"ipvsadm", "-R"}, Stdin: in}); err != nil {
		t.Fatal(out, err)
	}
	theirs := time.Since(start)
	t.Logf("%d services of as many servers: ours %v, nothing to do %v, one weight %v, ipvsadm -R %v", size, ours, nothing, single, theirs)
	if ours > 3*theirs {
		t.Errorf("ours took %v, ipvsadm -R %v: more than three times", ours, theirs)
	}
}

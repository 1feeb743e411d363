package logrelay

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/syslog"
)

// records are all that the journal has.
func records(t *testing.T, s *Server) (list []string) {
	t.Helper()
	return linesFrom(t, s.current.Load(), 0)
}

// TestTheSocketKnowsWhoWrites: util-linux's logger by a socket as /dev/log, and
// a program that lies about its process: what the kernel says stands in the
// line, and whose it is.
func TestTheSocketKnowsWhoWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path+".other", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	_ = stale.Close() // and its file stays, as a killed process leaves it
	s, dir, stop := serve(t, func(set *settings) { set.unix, set.replay = []string{path}, 1<<20 })
	if out, err := exec.CommandContext(t.Context(), "logger", "--socket", path, "--tag", "tester", "--priority", "local3.err", "by logger").CombinedOutput(); err != nil {
		t.Fatalf("logger: %v, %s", err, out)
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("<38>Nov 25 12:00:00 sshd[1]: Accepted password for root\x00")); err != nil {
		t.Fatal(err)
	}
	has(t, dir, "server", "local3.err tester[")
	has(t, dir, "server", "]: by logger\n")
	has(t, dir, "server", fmt.Sprintf(" auth.info sshd[%d]: Accepted password for root\n", os.Getpid()))
	if list := records(t, s); !slices.ContainsFunc(list, func(line string) bool {
		return strings.Contains(line, fmt.Sprintf(` - [local@32473 uid="%d" gid="%d"] Accepted`, os.Getuid(), os.Getgid()))
	}) {
		t.Errorf("%q", list)
	}
	if _, err := listenUnix(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another process reads it") {
		t.Errorf("a second reader: %v", err)
	}
	stop()
	if exists(path) {
		t.Error("the socket is left behind")
	}
	if _, err := listenUnix(t.Context(), path+".other"); err == nil || !exists(path+".other") {
		t.Errorf("a file that is no socket: %v", err)
	}
}

// TestALineOfTheSocketNamesNoHost: the word behind the time is the program.
func TestALineOfTheSocketNamesNoHost(t *testing.T) {
	now := time.Date(2026, 11, 25, 13, 0, 0, 0, time.UTC)
	for in, want := range map[string]string{
		"<13>Nov 25 12:00:00 app hello":                   `<13>1 2026-11-25T12:00:00.000000Z - app 7 - [local@32473 uid="1" gid="2"] hello`,
		"<13>Nov 25 12:00:00 app[9]: hello\n":             `<13>1 2026-11-25T12:00:00.000000Z - app 7 - [local@32473 uid="1" gid="2"] hello`,
		"<11>app: hello":                                  `<11>1 2026-11-25T13:00:00.000000Z - app 7 - [local@32473 uid="1" gid="2"] hello`,
		"hello world":                                     `<13>1 2026-11-25T13:00:00.000000Z - - 7 - [local@32473 uid="1" gid="2"] hello world`,
		"<13>1 2026-11-25T12:00:00Z evil app 9 - - hello": `<13>1 2026-11-25T12:00:00.000000Z - app 7 - [local@32473 uid="1" gid="2"] hello`,
	} {
		if diff := cmp.Diff(want, string(appendSocket(nil, []byte(in), sockopt.Credentials{PID: 7, UID: 1, GID: 2}, now))); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
}

// startJournald runs systemd-journald in a mount namespace of its own, with its
// files below dir; say has a program there write to it.
func startJournald(t *testing.T, dir string) (say func(script string)) {
	t.Helper()
	cmd := exec.Command("unshare", "-mpf", "--mount-proc", "--kill-child", "sh", "-ec", `
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal
mount --bind "$1" /run/log/journal
/lib/systemd/systemd-journald &
while [ ! -S /run/systemd/journal/dev-log ]; do sleep 0.1; done
echo ready
while read -r script; do sh -ec "$script"; echo done; done`, "sh", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // and all of its process namespace
		_ = cmd.Wait()
	})
	answers := bufio.NewReader(out)
	answer := func(want string) {
		t.Helper()
		if line, err := answers.ReadString('\n'); err != nil || line != want+"\n" {
			t.Fatalf("systemd-journald in a namespace: %q, %v; want %s", line, err, want)
		}
	}
	answer("ready")
	return func(script string) {
		t.Helper()
		if _, err := fmt.Fprintln(in, script); err != nil {
			t.Fatal(err)
		}
		answer("done")
	}
}

// TestJournaldsLinesComeOnce: those of the real one, what was there before we
// were, what comes, and what came while we were not; each once.
func TestJournaldsLinesComeOnce(t *testing.T) {
	dir := t.TempDir()
	say := startJournald(t, dir)
	// The kernel says who wrote to a socket for as long as that lives.
	stored := func(n int, tag, by string) {
		t.Helper()
		say(fmt.Sprintf(`{ echo seq=%[1]d.; until journalctl -q -t %[2]s -D /run/log/journal | grep -q seq=%[1]d; do sleep 0.1; done; } | %[3]s`, n, tag, by))
	}
	stored(0, "tester", "systemd-cat -t tester -p err")
	s, hosts, board := prepare(t)
	s.settings.journald, s.journalArgs = true, []string{"--directory=" + dir}
	stop := run(t, s)
	arrive := func(end int) {
		t.Helper()
		eventually(t, time.Minute, "the lines come", func() error {
			if lost := missing((&process{t: t, dir: hosts}).numbers("server"), end); len(lost) > 0 {
				return fmt.Errorf("%v are missing; %v", lost, board.Conditions())
			}
			return nil
		})
	}
	arrive(1)
	stored(1, "lg", "logger -u /run/systemd/journal/dev-log -t lg -p local3.info")
	say(`for n in 2 3 4 5 6 7 8 9; do echo "seq=$n."; done | systemd-cat -t tester`)
	arrive(10)
	stop()
	say("echo seq=10. | systemd-cat -t tester")
	stop = run(t, s)
	arrive(11) // by two connections they could come in any order
	say("echo seq=11. | systemd-cat -t tester")
	arrive(12)
	stop()
	if got := (&process{t: t, dir: hosts}).numbers("server"); len(got) != 12 || !slices.IsSorted(got) {
		t.Errorf("%v", got)
	}
	has(t, hosts, "server", "user.err tester[")
	has(t, hosts, "server", "local3.info lg[")
	// A program that can't be read is a condition, and no more.
	s.journalArgs = []string{"--no-such-option"}
	run(t, s)
	raised(t, board, conditionJournald, true)
}

func binaryField(name, value string) string {
	return name + "\n" + string(binary.LittleEndian.AppendUint64(nil, uint64(len(value)))) + value + "\n"
}

func readEntry(r *bufio.Reader) (e entry, err error) {
	err = e.read(r)
	return e, err
}

func TestEntriesOfJournaldAreUnderstood(t *testing.T) {
	const head = "__CURSOR=s=1;i=2\n__REALTIME_TIMESTAMP=1795668072412577\n"
	for name, test := range map[string]struct{ in, want string }{
		"plain":     {head + "PRIORITY=3\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=sshd\n_COMM=other\n_PID=7\n_UID=0\n_SYSTEMD_UNIT=ssh.service\nMESSAGE=hello\n\n", `<27>1 2026-11-26T04:41:12.412577Z - sshd 7 - [local@32473 uid="0" unit="ssh.service"] hello`},
		"binary":    {head + binaryField("MESSAGE", "two\nlines\n") + "\n", "<14>1 2026-11-26T04:41:12.412577Z - - - - [local@32473] two\nlines\n"},
		"by comm":   {head + "_COMM=a b\nMESSAGE=\n\n", "<14>1 2026-11-26T04:41:12.412577Z - a?b - - [local@32473] "},
		"forgery":   {head + "_SYSTEMD_UNIT=x\"] <0>\nPRIORITY=9\nMESSAGE=m\n\n", `<14>1 2026-11-26T04:41:12.412577Z - - - - [local@32473 unit="x???<0>"] m`},
		"much":      {"\n" + head + "MESSAGE=" + strings.Repeat("m", maxMessage+5000) + "\nLONG=" + strings.Repeat("x", 200_000) + "\n\n", "<14>1 2026-11-26T04:41:12.412577Z - - - - [local@32473] " + strings.Repeat("m", maxMessage)},
		"much more": {head + binaryField("MESSAGE", strings.Repeat("m", maxMessage+5000)) + "\n", "<14>1 2026-11-26T04:41:12.412577Z - - - - [local@32473] " + strings.Repeat("m", maxMessage)},
	} {
		r := bufio.NewReaderSize(strings.NewReader(test.in+test.in), 4096)
		for range 2 {
			e, err := readEntry(r)
			if err != nil || e.cursor != "s=1;i=2" {
				t.Errorf("%s: %q, %v", name, e.cursor, err)
			}
			e.time = e.time.UTC()
			if diff := cmp.Diff(test.want, string(e.append(nil))); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
		if _, err := readEntry(r); err != io.EOF {
			t.Errorf("%s: at the end: %v", name, err)
		}
	}
	for _, in := range []string{"A", "A=", "A=1\n", "__CURSOR=1\n", "A\nxx", binaryField("A", "abc")[:10], "A\n\x01\x00\x00\x00\x00\x00\x00\x00ab", "=x\n\n", "A=1\n\n", "A\n\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if _, err := readEntry(bufio.NewReader(strings.NewReader(in))); err == nil || err == io.EOF {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// FuzzEntry: whatever journalctl writes, memory is bounded, and an entry is a
// line that our own parser takes apart.
func FuzzEntry(f *testing.F) {
	f.Add([]byte("__CURSOR=s=1\nMESSAGE=hello\n_PID=1\n_UID=0\n_SYSTEMD_UNIT=a.service\n\n"))
	f.Add([]byte("__CURSOR=s=1\n" + binaryField("MESSAGE", "a\nb") + "PRIORITY=3\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(in), 4096)
		for {
			e, err := readEntry(r)
			if err != nil {
				return
			}
			if len(e.message) > maxMessage || len(e.unit) > maxField || len(e.cursor) > maxField {
				t.Fatalf("an entry with %d bytes of text", len(e.message))
			}
			line := e.append(nil)
			var m syslog.Message
			syslog.Parse(&m, line, time.Now())
			if m.Data == nil || int(m.Priority) != e.facility<<3|e.priority || len(m.Host) > 0 {
				t.Fatalf("%q is read as %+v", line, m)
			}
		}
	})
}

// TestBusyBoxSends: its syslogd with -R, which takes the lines of its logger.
func TestBusyBoxSends(t *testing.T) {
	s, dir, _ := serve(t, nil)
	// /dev/log is fixed in it: it gets a /dev of its own.
	cmd := exec.Command("unshare", "-mpf", "--mount-proc", "--kill-child", "sh", "-ec", `
mount -t tmpfs tmpfs /dev
mknod /dev/null c 1 3
busybox syslogd -n -O /dev/messages -R "$1" &
while [ ! -S /dev/log ]; do sleep 0.1; done
busybox logger -t bb -p local2.warn seq=0.
wait`, "sh", s.Addrs("udp")[0].String())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // and all of its process namespace
		_ = cmd.Wait()
	}()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	// It says no host, or this one, as it was built.
	eventually(t, time.Minute, "the line comes", func() error {
		names, _ := filepath.Glob(filepath.Join(dir, "hosts", "*.log"))
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err == nil && strings.Contains(string(b), "local2.warning bb: seq=0.\n") {
				return nil
			}
		}
		return fmt.Errorf("%q, this host is %s", names, host)
	})
}

// TestSyslogNGSends: Debian's, by TCP with RFC 5424 in counted frames and by
// UDP with RFC 3164.
func TestSyslogNGSends(t *testing.T) {
	path := os.Getenv("PATH")
	root, err := filepath.Abs("../build/peers/root")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(root, "usr/sbin/syslog-ng")
	if !exists(program) {
		const advice = "syslog-ng is missing, run hack/peers: it can't be installed beside rsyslog"
		if os.Getenv("CI") != "" {
			t.Fatal(advice)
		}
		t.Skip(advice)
	}
	libs := filepath.Join(root, "usr/lib/syslog-ng")
	s, dir, _ := serve(t, nil)
	home := t.TempDir()
	port := func(input string) string { return strconv.Itoa(int(s.Addrs(input)[0].Port())) }
	config := fmt.Sprintf(`@version: 3.38
options { keep-hostname(yes); };
source in { file("%[1]s/in" follow-freq(0.1) flags(no-parse) default-facility(local4) default-severity(err) program-override("ng")); };
destination tcp { syslog("127.0.0.1" port(%[2]s) transport("tcp")); };
destination udp { network("127.0.0.1" port(%[3]s) transport("udp")); };
log { source(in); destination(tcp); };
log { source(in); destination(udp); };
`, home, port("tcp"), port("udp"))
	if err := os.WriteFile(filepath.Join(home, "ng.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for n := range 100 {
		fmt.Fprintf(&lines, "seq=%d.\n", n)
	}
	if err := os.WriteFile(filepath.Join(home, "in"), []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(home, name) }
	cmd := exec.Command(program, "-F", "--no-caps", "-f", at("ng.conf"), "-R", at("persist"), "-c", at("ctl"), "-p", at("pid"), "--module-path", filepath.Join(libs, "3.38"))
	cmd.Env = []string{"PATH=" + path, "LD_LIBRARY_PATH=" + strings.Join([]string{libs, filepath.Join(root, "usr/lib/x86_64-linux-gnu"), filepath.Join(root, "lib/x86_64-linux-gnu")}, ":")}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	}()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "all lines come both ways", func() error {
		got := (&process{t: t, dir: dir}).numbers(safeName(strings.ToLower(host)))
		if len(got) != 200 || len(missing(got, 100)) > 0 {
			names, _ := filepath.Glob(filepath.Join(dir, "hosts", "*"))
			return fmt.Errorf("%d of 200; files %q", len(got), names)
		}
		return nil
	})
	has(t, dir, safeName(strings.ToLower(host)), "local4.err ng: seq=99.\n")
}

package state

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// samples has every command with every field set to something.
func samples() map[string]Command {
	return map[string]Command{
		"register": Register{
			Node: Node{ID: "0b1c", Name: "fbservice1", Address: netip.MustParseAddr("10.1.0.1"), Meta: map[string]string{"role": "service", "rack": "1"}, CreateIndex: 1, ModifyIndex: 2},
			Services: []Service{{Node: "fbservice1", ID: "apt-1", Name: "apt", Tags: []string{"cache", "deb"}, Address: netip.MustParseAddr("2001:db8::1"),
				Port: 3142, Meta: map[string]string{"v": "3"}, Weights: Weights{Passing: 10, Warning: 1}, CreateIndex: 3, ModifyIndex: 4}},
			Checks: []Check{{Node: "fbservice1", ID: "service:apt", Name: "APT answers", Status: Warning, Notes: "n", Output: "429", ServiceID: "apt-1",
				ServiceName: "apt", ServiceTags: []string{"cache"}, Type: "http", CreateIndex: 5, ModifyIndex: 6}},
		},
		"deregister":   Deregister{Node: "fbservice1", Services: []string{"apt-1"}, Checks: []string{"c"}, NodeID: "0b1c"},
		"update-check": UpdateCheck{Node: "fbservice1", Updates: []CheckState{{ID: "service:apt", Status: Critical, Output: "connection refused"}}},
		"kv": KV{Verb: CAS, Entry: Entry{Key: "site/flag", Value: []byte{0, 1, 0xff}, Flags: 42, LockIndex: 7, Session: "s",
			CreateIndex: 8, ModifyIndex: math.MaxUint64}},
		"document":    PutDocument{Verb: DeleteCAS, Document: Document{Kind: "vrrp/hold", Key: "161", Value: []byte("fbservice1"), CreateIndex: 9, ModifyIndex: 10}},
		"set-cluster": SetCluster{Cluster{ID: "7f3c", Name: "scibian", Feature: 2, CreateIndex: 11, ModifyIndex: 12}},
		"create-session": CreateSession{Session{ID: "5f", Name: "leader of pg", Node: "fbservice1", NodeChecks: []string{"serfHealth"}, ServiceChecks: []string{"service:apt"},
			Behavior: BehaviorDelete, TTL: 15e9, LockDelay: 1e9, RenewIndex: 13, CreateIndex: 14, ModifyIndex: 15}},
		"destroy-session": DestroySession{ID: "5f", RenewIndex: 16},
		"renew-session":   RenewSession{ID: "5f"},
		"end-delay":       EndDelay{Key: "site/lock", Index: 17},
		"transact":        Transact{[]KV{{Verb: CheckSession, Entry: Entry{Key: "site/lock", Session: "5f"}}, {Verb: Set, Entry: Entry{Key: "a", Value: []byte("b")}}}},
		// The least a command can be.
		"register-empty": Register{},
		"kv-empty":       KV{},
	}
}

// TestEncodingOfReleasedCommandsStays pins the bytes that are in the logs of
// clusters that run. A difference here is a log that can't be read, or that two
// versions read differently: give the command another kind instead.
func TestEncodingOfReleasedCommandsStays(t *testing.T) {
	for name, cmd := range samples() {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", "commands", name+".hex")
			b, err := Encode(cmd)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(file, []byte(hex.Dump(b)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden := readDump(t, file)
			if d := cmp.Diff(hex.Dump(golden), hex.Dump(b)); d != "" {
				t.Errorf("encoded otherwise than before:\n%s", d)
			}
			got, err := Decode(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(cmd, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
				t.Errorf("decoded otherwise than before:\n%s", d)
			}
		})
	}
}

// readDump reads what hex.Dump wrote.
func readDump(t testing.TB, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for line := range strings.Lines(string(text)) {
		octets, _, _ := strings.Cut(line[8:], "|")
		part, err := hex.DecodeString(strings.Join(strings.Fields(octets), ""))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		b = append(b, part...)
	}
	return b
}

func TestEqualCommandsHaveEqualBytes(t *testing.T) {
	meta := func() map[string]string {
		m := map[string]string{}
		for i := range 50 {
			m[fmt.Sprint(i)] = "x"
		}
		return m
	}
	first, err := Encode(Register{Node: Node{Name: "n", Meta: meta()}})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		again, err := Encode(Register{Node: Node{Name: "n", Meta: meta()}})
		if err != nil || string(again) != string(first) {
			t.Fatalf("the order of a map reached the encoding (%v)", err)
		}
	}
}

func TestDecodeToleratesFieldsOfNewerPrograms(t *testing.T) {
	// {"node": "n1", "new": [1, {"a": nil}], "checks": ["c"]}
	body := "\x83\xa4node\xa2n1\xa3new\x92\x01\x81\xa1a\xc0\xa6checks\x91\xa1c"
	got, err := Decode([]byte("\x01\x02\x00" + body))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Command(Deregister{Node: "n1", Checks: []string{"c"}}), got); d != "" {
		t.Error(d)
	}
}

func TestDecodeTellsUnknownCommandsApart(t *testing.T) {
	for _, skippable := range []bool{false, true} {
		b := binary.AppendUvarint([]byte{commandFormat}, 300)
		b = append(b, 0x80) // a flag of the future
		if skippable {
			b[len(b)-1] |= flagSkippable
		}
		_, err := Decode(append(b, "whatever"...))
		var unknown *UnknownCommandError
		if !errors.As(err, &unknown) {
			t.Fatalf("Decode = %v, not an UnknownCommandError", err)
		}
		if !strings.Contains(err.Error(), "unknown kind 300") || strings.Contains(err.Error(), "skipped") != skippable {
			t.Errorf("skippable %v: %v", skippable, err)
		}
		if d := cmp.Diff(&UnknownCommandError{Kind: 300, Skippable: skippable}, unknown); d != "" {
			t.Error(d)
		}
	}
}

func TestDecodeSaysWhatIsWrong(t *testing.T) {
	deep := strings.Repeat("\x91", maxDepth) + "\x01"
	for _, c := range []struct{ name, in, want string }{
		{"nothing", "", "empty"},
		{"a newer format", "\x02\x01\x00\x80", "format 2, not 1"},
		{"only a format", "\x01", "in its header"},
		{"no flags", "\x01\x01", "in its header"},
		{"an endless kind", "\x01" + strings.Repeat("\xff", 11), "in its header"},
		{"no body", "\x01\x04\x00", "at byte 0: ends too early"},
		{"no map", "\x01\x04\x00\x93\x01\x02\x03", "does not begin a map"},
		{"a map that ends", "\x01\x04\x00\x82\xa1a", "4 values announced, 2 bytes left"},
		{"a string that ends", "\x01\x04\x00\x81\xa4verb\xd9", "at byte 6: ends too early: 1 bytes of 2"},
		{"a string longer than all", "\x01\x04\x00\x81\xa4verb\xdb\xff\xff\xff\xff", "a value of 4294967295 bytes, 0 left"},
		{"an array longer than all", "\x01\x03\x00\x81\xa7updates\xdd\xff\xff\xff\xff", "4294967295 values announced, 0 bytes left"},
		{"a byte that begins nothing", "\x01\x04\x00\x81\xa4verb\xc1", "0xc1 begins no value"},
		{"more after the end", "\x01\x04\x00\x80\x00", "1 bytes after the end"},
		{"too many levels", "\x01\x04\x00\x81\xa1x" + deep, "more than 32 levels"},
		{"a string for a map", "\x01\x04\x00\x81\xa5entry\xa1x", "decode state.KV"},
		{"a number too great", "\x01\x01\x00\x81\xa8services\x91\x81\xa4port\xce\x00\x01\x00\x00", "decode state.Register"},
		{"an address of 3 bytes", "\x01\x01\x00\x81\xa4node\x81\xa4addr\xc4\x03\x01\x02\x03", "decode state.Register"},
		{"too long", strings.Repeat("\x01", MaxCommand+1), "more than 4194304"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd, err := Decode([]byte(c.in))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Decode = %v, %v; want an error with %q", cmd, err, c.want)
			}
		})
	}
}

// TestEveryMsgpackFormatIsMeasured gives each first byte of the specification
// with a value of the length it announces.
func TestEveryMsgpackFormatIsMeasured(t *testing.T) {
	for c := range 256 {
		length := bytesAfter(byte(c))
		value := append([]byte{byte(c)}, make([]byte, length)...)
		if width := countWidth(byte(c)); width > 0 { // of nothing
			value = append(value[:1], make([]byte, width+extByte(byte(c)))...)
		}
		b := append([]byte("\x81\xa1k"), value...)
		err := checkMsgpack(b)
		if c == 0xc1 {
			if err == nil {
				t.Errorf("%#02x passes", c)
			}
			continue
		}
		if err != nil {
			t.Errorf("%#02x with %d bytes: %v", c, len(value)-1, err)
		}
		if err := checkMsgpack(append(b, 0)); err == nil {
			t.Errorf("%#02x with a byte too many passes", c)
		}
		if len(value) > 1 && checkMsgpack(b[:len(b)-1]) == nil {
			t.Errorf("%#02x with a byte too few passes", c)
		}
	}
}

// bytesAfter is how many zero bytes make a fixed-size value complete.
func bytesAfter(c byte) int {
	switch {
	case c >= 0x80 && c <= 0x8f:
		return 2 * int(c&0x0f)
	case c >= 0x90 && c <= 0x9f:
		return int(c & 0x0f)
	case c >= 0xa0 && c <= 0xbf:
		return int(c & 0x1f)
	}
	fixed := map[byte]int{0xca: 4, 0xcb: 8, 0xcc: 1, 0xcd: 2, 0xce: 4, 0xcf: 8, 0xd0: 1, 0xd1: 2, 0xd2: 4, 0xd3: 8,
		0xd4: 2, 0xd5: 3, 0xd6: 5, 0xd7: 9, 0xd8: 17}
	return fixed[c]
}

// countWidth is how many bytes a length or count takes.
func countWidth(c byte) int {
	return map[byte]int{0xc4: 1, 0xc5: 2, 0xc6: 4, 0xc7: 1, 0xc8: 2, 0xc9: 4, 0xd9: 1, 0xda: 2, 0xdb: 4,
		0xdc: 2, 0xdd: 4, 0xde: 2, 0xdf: 4}[c]
}

func extByte(c byte) int {
	if c >= 0xc7 && c <= 0xc9 {
		return 1
	}
	return 0
}

func TestDecodeAllocatesInProportion(t *testing.T) {
	// A command of 4 MiB of empty maps, each of which would be a Service.
	n := uint32(MaxCommand - 64)
	b := binary.BigEndian.AppendUint32([]byte("\x01\x01\x00\x81\xa8services\xdd"), n)
	for range n {
		b = append(b, 0x80)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Decode(b)
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "more than 131072 values") {
		t.Errorf("Decode = %v", err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("%d bytes allocated for a refusal", used)
	}
}

func TestEncodeRefusesWhatDecodeWould(t *testing.T) {
	t.Parallel()
	for name, cmd := range map[string]Command{
		"nil":             nil,
		"too long":        KV{Verb: Set, Entry: Entry{Key: "k", Value: make([]byte, MaxCommand)}},
		"too many values": Register{Services: make([]Service, 40000)},
	} {
		t.Run(name, func(t *testing.T) {
			if b, err := Encode(cmd); !errors.Is(err, ErrInvalid) {
				t.Errorf("Encode = %d bytes, %v; want ErrInvalid", len(b), err)
			}
		})
	}
}

func TestErrorsSurviveForwarding(t *testing.T) {
	all := []error{ErrConflict, ErrNotFound, ErrInvalid, ErrNoLeader, ErrUnknownOutcome}
	for _, sentinel := range all {
		for _, err := range []error{sentinel, fmt.Errorf("raftstore: key %q: %w: more", "k", sentinel)} {
			got := ErrorFrom(ErrorCode(err))
			if got.Error() != err.Error() {
				t.Errorf("%q became %q", err, got)
			}
			for _, other := range all {
				if errors.Is(got, other) != (other == sentinel) {
					t.Errorf("errors.Is(%q, %q) = %v on the other side", got, other, errors.Is(got, other))
				}
			}
			if again := ErrorFrom(ErrorCode(got)); !errors.Is(again, sentinel) || again.Error() != err.Error() {
				t.Errorf("%q became %q after two calls", err, again)
			}
		}
	}
	if code, msg := ErrorCode(nil); code != "" || msg != "" || ErrorFrom(code, msg) != nil {
		t.Errorf("nil became %q %q", code, msg)
	}
	if got := ErrorFrom(ErrorCode(errors.New("disk on fire"))); got == nil || got.Error() != "disk on fire" {
		t.Errorf("another error became %v", got)
	}
	if got := ErrorFrom("a-code-of-the-future", "text"); got == nil || got.Error() != "text" {
		t.Errorf("an unknown code became %v", got)
	}
}

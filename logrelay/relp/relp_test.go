package relp

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestFrameIsReadAsLibrelpWritesIt(t *testing.T) {
	for in, want := range map[string]Frame{
		"1 open 14 relp_version=0\n":       {1, []byte("open"), []byte("relp_version=0")},
		"2 syslog 3 a\nb\n":                {2, []byte("syslog"), []byte("a\nb")},
		"999999999 close 0\n":              {MaxTxnr, []byte("close"), nil},
		"3 close 0 \n":                     {3, []byte("close"), nil},
		"0 serverclose 0\n":                {0, []byte("serverclose"), nil},
		"4 rsp 6 200 OK\n5 rsp 6 200 OK\n": {4, []byte("rsp"), []byte("200 OK")},
	} {
		f, n, err := Parse([]byte(in))
		if err != nil || f.Txnr != want.Txnr || !bytes.Equal(f.Command, want.Command) || !bytes.Equal(f.Data, want.Data) {
			t.Errorf("%q: %+v, %d, %v", in, f, n, err)
		}
		for cut := range n {
			if f, n, err := Parse([]byte(in)[:cut]); n != 0 || err != nil {
				t.Errorf("%q: %+v, %d, %v", in[:cut], f, n, err)
			}
		}
	}
}

func TestWhatIsNoFrameIsRefused(t *testing.T) {
	for _, in := range []string{
		"x", "-1 open 0\n", "1234567890 open 0\n", "1  0\n", "1 open\n", "1 open x\n", "1 open 131073 ",
		"1 syslog 3 abcd\n", "1 syslog 3abc\n", "1\topen 0\n", "1 " + strings.Repeat("c", 33),
	} {
		if f, n, err := Parse([]byte(in)); err == nil {
			t.Errorf("%q: %+v, %d", in, f, n)
		}
	}
	line := bytes.Repeat([]byte{'x'}, MaxData)
	whole := Append(nil, MaxTxnr, "syslog", line)
	if f, n, err := Parse(whole); err != nil || n != len(whole) || len(f.Data) != MaxData || n > MaxFrame {
		t.Errorf("the greatest frame: %d bytes, %v", n, err)
	}
}

// step is a frame and what the server does about it.
type step struct {
	in   string
	want Verdict
	err  string
}

func TestServerKeepsTheOrderOfLibrelp(t *testing.T) {
	for name, script := range map[string][]step{
		"a session":             {{"1 open 0\n", Reply, ""}, {"2 syslog 1 a\n", Store, ""}, {"3 close 0\n", Close, ""}, {"4 syslog 1 a\n", 0, "after close"}},
		"a hint is not counted": {{"1 open 0\n", Reply, ""}, {"0 hint 0\n", Ignore, ""}, {"2 syslog 1 a\n", Store, ""}},
		"a gap":                 {{"1 open 0\n", Reply, ""}, {"3 syslog 1 a\n", 0, "transaction 3, want 2"}},
		"a repetition":          {{"1 open 0\n", Reply, ""}, {"2 syslog 1 a\n", Store, ""}, {"2 syslog 1 a\n", 0, "transaction 2, want 3"}},
		"no open":               {{"1 syslog 1 a\n", 0, "before open"}},
		"two opens":             {{"1 open 0\n", Reply, ""}, {"2 open 0\n", 0, "want syslog"}},
		"an unknown command":    {{"1 open 0\n", Reply, ""}, {"2 starttls 0\n", 0, "starttls"}},
		"does not begin at 1":   {{"7 open 0\n", 0, "want 1"}},
	} {
		var s Server
		for _, step := range script {
			f, _, err := Parse([]byte(step.in))
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.Step(f)
			if step.err != "" {
				if err == nil || !strings.Contains(err.Error(), step.err) {
					t.Errorf("%s: %q: %v, %v", name, step.in, got, err)
				}
				break
			}
			if err != nil || got != step.want {
				t.Errorf("%s: %q: %v, %v", name, step.in, got, err)
			}
		}
	}
}

func TestTransactionNumbersStartOverAtOne(t *testing.T) {
	s := Server{open: true, last: MaxTxnr - 1}
	c := Client{opened: true, last: MaxTxnr - 1, answered: MaxTxnr - 1}
	for _, want := range []uint32{MaxTxnr, 1, 2} {
		f, _, err := Parse(c.AppendLine(nil, []byte("x")))
		if err != nil || f.Txnr != want {
			t.Fatalf("%d, %v", f.Txnr, err)
		}
		if _, err := s.Step(f); err != nil {
			t.Error(err)
		}
		answer, _, _ := Parse(AppendOK(nil, f.Txnr))
		if n, err := c.Step(answer); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
}

func TestClientCountsWhatIsAcknowledged(t *testing.T) {
	var s Server
	var c Client
	wire := c.AppendOpen(nil)
	for range 3 {
		wire = c.AppendLine(wire, []byte("line"))
	}
	wire = c.AppendClose(wire)
	var back []byte
	for len(wire) > 0 {
		f, n, err := Parse(wire)
		if err != nil {
			t.Fatal(err)
		}
		wire = wire[n:]
		verdict, err := s.Step(f)
		if err != nil {
			t.Fatal(err)
		}
		switch verdict {
		case Reply:
			back = AppendReply(back, f)
		case Store:
			back = AppendOK(back, f.Txnr)
		case Close:
			back = AppendClosed(back, f)
		}
	}
	acknowledged := 0
	for len(back) > 0 {
		f, n, err := Parse(back)
		if err != nil {
			t.Fatal(err)
		}
		back = back[n:]
		got, err := c.Step(f)
		acknowledged += got
		if err != nil && (!errors.Is(err, ErrServerClose) || len(back) > 0) {
			t.Fatal(err)
		}
	}
	if acknowledged != 3 || c.Waiting() != 0 {
		t.Errorf("%d acknowledged, %d wait", acknowledged, c.Waiting())
	}
	for _, bad := range []string{"3 rsp 6 200 OK\n", "2 rsp 9 500 Error\n", "1 syslog 0\n", "2 rsp 2 OK\n"} {
		c := Client{opened: true, last: 3, answered: 1, waiting: 2}
		f, _, _ := Parse([]byte(bad))
		if n, err := c.Step(f); err == nil {
			t.Errorf("%q acknowledges %d", bad, n)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("1 open 14 relp_version=0\n2 syslog 3 a\nb\n3 close 0\n"))
	f.Add([]byte("0 serverclose 0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Server
		for {
			frame, n, err := Parse(b)
			if err != nil || n == 0 {
				if err == nil && len(b) >= MaxFrame {
					t.Fatalf("%d bytes and no frame yet", len(b))
				}
				return
			}
			again, m, err := Parse(Append(nil, frame.Txnr, string(frame.Command), frame.Data))
			if err != nil || m == 0 || again.Txnr != frame.Txnr || !bytes.Equal(again.Data, frame.Data) {
				t.Fatalf("%+v is written as %+v: %v", frame, again, err)
			}
			_, _ = s.Step(frame)
			b = b[n:]
		}
	})
}

package relp

import (
	"bytes"
	"strings"
	"testing"
)

// cutAll gives a Cutter a stream in pieces of so many bytes, with what it has
// not taken in front, as a connection's buffer does. It returns the frames with
// copies of their data, and the most bytes that waited.
func cutAll(stream []byte, piece int) (frames []Frame, cut, waited int, err error) {
	var c Cutter
	var buf []byte
	for len(stream) > 0 {
		n := min(piece, len(stream))
		buf = append(buf, stream[:n]...)
		stream = stream[n:]
		for {
			f, size, err := c.Next(buf)
			if err != nil {
				return frames, c.Cut, waited, err
			}
			if size == 0 {
				break
			}
			buf = buf[size:]
			if len(f.Command) > 0 {
				f.Data = bytes.Clone(f.Data)
				frames = append(frames, f)
			}
		}
		waited = max(waited, len(buf))
	}
	return frames, c.Cut, waited, nil
}

// TestALineThatIsTooLongIsCutAndWhatFollowsIsRead: in whatever pieces it comes,
// and without more than the greatest frame in memory. A server that breaks off
// at it gets the same frame first for ever.
func TestALineThatIsTooLongIsCutAndWhatFollowsIsRead(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), 3*MaxData/10)
	stream := Append(nil, 1, "open", []byte("relp_version=0"))
	stream = Append(stream, 2, "syslog", []byte("before"))
	stream = Append(stream, 3, "syslog", long)
	stream = Append(stream, 4, "syslog", long[:MaxData+1])
	stream = Append(stream, 5, "syslog", long[:MaxData])
	stream = Append(stream, 6, "syslog", []byte("behind"))
	want := [][]byte{[]byte("relp_version=0"), []byte("before"), long[:MaxData], long[:MaxData], long[:MaxData], []byte("behind")}
	for _, piece := range []int{1 << 20, 64 << 10, 4096, 999, 7} {
		frames, cut, waited, err := cutAll(stream, piece)
		if err != nil || len(frames) != len(want) {
			t.Fatalf("pieces of %d bytes: %d frames of %d, %v", piece, len(frames), len(want), err)
		}
		for i, f := range frames {
			if f.Txnr != uint32(i+1) || !bytes.Equal(f.Data, want[i]) {
				t.Errorf("pieces of %d bytes, frame %d: number %d, %d bytes, want %d", piece, i, f.Txnr, len(f.Data), len(want[i]))
			}
		}
		if cut != 2 {
			t.Errorf("%d lines were cut, want 2", cut)
		}
		if waited > MaxFrame+piece {
			t.Errorf("pieces of %d bytes: %d bytes waited", piece, waited)
		}
	}
}

func TestWhatIsTooLongAndNoLineIsRefused(t *testing.T) {
	for in, want := range map[string]string{
		"1 open 131073 ":                 "want at most 131072",
		"1 syslog 1000000000 ":           "more than 9 digits",
		"1 syslog 131073 " + longX + "y": "want a line feed",
	} {
		if frames, _, _, err := cutAll([]byte(in), 4096); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30q: %d frames, %v, want %q", in, len(frames), err, want)
		}
	}
}

var longX = strings.Repeat("x", MaxData+1)

// FuzzCutter: what Parse reads, a Cutter reads in any pieces.
func FuzzCutter(f *testing.F) {
	f.Add([]byte("1 open 14 relp_version=0\n2 syslog 3 a\nb\n3 close 0\n"), uint16(3))
	f.Add([]byte("0 serverclose 0\n7 syslog 131073 x"), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		frames, _, _, failed := cutAll(b, int(piece)+1)
		rest := b
		for i := 0; ; i++ {
			want, n, err := Parse(rest)
			if err != nil || n == 0 {
				if err == nil && (failed != nil || i != len(frames)) {
					t.Fatalf("%d frames and %v, want %d", len(frames), failed, i)
				}
				return
			}
			if i >= len(frames) || frames[i].Txnr != want.Txnr || !bytes.Equal(frames[i].Command, want.Command) || !bytes.Equal(frames[i].Data, want.Data) {
				t.Fatalf("frame %d of %d is another than %+v", i, len(frames), want)
			}
			rest = rest[n:]
		}
	})
}

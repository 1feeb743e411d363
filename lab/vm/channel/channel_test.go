package channel

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFramesComeBackAsTheyWereSent(t *testing.T) {
	var stream bytes.Buffer
	c := New(&stream)
	want := []Frame{{Hello, 0, []byte{}}, {Stdout, 7, []byte("text")}, {Exited, 1<<32 - 1, make([]byte, MaxData)}}
	for _, f := range want {
		if err := c.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range want {
		got, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if got.Kind != f.Kind || got.ID != f.ID || !bytes.Equal(got.Data, f.Data) {
			t.Errorf("kind %d, id %d, %d bytes came back as %d, %d, %d", f.Kind, f.ID, len(f.Data), got.Kind, got.ID, len(got.Data))
		}
	}
	if _, err := c.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
	if err := c.Send(Frame{Kind: Stdout, Data: make([]byte, MaxData+1)}); err == nil {
		t.Error("a frame that is too long was sent")
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte{byte(Stdout), 0, 0, 0, 7, 0, 0, 0, 2, 'h', 'i'})
	f.Add([]byte{byte(Stdout), 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := New(bytes.NewBuffer(bytes.Clone(data))).Receive()
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := New(&again).Send(got); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(data, again.Bytes()) {
			t.Errorf("%x was read as %x", data, again.Bytes())
		}
	})
}

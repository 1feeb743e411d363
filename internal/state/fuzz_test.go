package state

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/go-msgpack/v2/codec"
)

// FuzzDecode: what Decode accepts Encode gives back, Apply survives, and the
// state that comes of it survives a snapshot.
func FuzzDecode(f *testing.F) {
	for _, cmd := range samples() {
		b, err := Encode(cmd)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x01\xac\x02\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd, err := Decode(b)
		if err != nil {
			return
		}
		again := recode(t, cmd)
		if d := cmp.Diff(cmd, again, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("encoded and decoded again it differs:\n%s", d)
		}
		s := filled(t)
		before := snapshotOf(t, s)
		if err := s.Apply(100, cmd); err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrNotFound) {
				t.Errorf("Apply = %v", err)
			}
			// The index in the header, its sum and the trailer's differ.
			if after := snapshotOf(t, s); !bytes.Equal(before[headerSize:len(before)-32], after[headerSize:len(after)-32]) {
				t.Errorf("%v, and the tables changed", err)
			}
			return
		}
		restored := New()
		if err := restored.Restore(bytes.NewReader(snapshotOf(t, s))); err != nil {
			t.Fatalf("a snapshot after %T: %v", cmd, err)
		}
		if !bytes.Equal(snapshotOf(t, s), snapshotOf(t, restored)) {
			t.Error("the snapshot of the restored store differs")
		}
	})
}

// FuzzRestore: a stream is refused and changes nothing, or is a state that
// works. The checksums are put right first, so that the fuzzer gets past them.
func FuzzRestore(f *testing.F) {
	f.Add(snapshotOf(f, filled(f)))
	f.Add(snapshotOf(f, New()))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = reseal(b)
		s := New()
		apply(t, s, 1, set("mine", "v"))
		before := snapshotOf(t, s)
		if err := s.Restore(bytes.NewReader(b)); err != nil {
			if !errors.Is(err, ErrSnapshot) {
				t.Errorf("Restore = %v", err)
			}
			if !bytes.Equal(before, snapshotOf(t, s)) {
				t.Error("a refused snapshot changed the store")
			}
			return
		}
		written := snapshotOf(t, s)
		again := New()
		if err := again.Restore(bytes.NewReader(written)); err != nil || !bytes.Equal(written, snapshotOf(t, again)) {
			t.Errorf("what was restored can't be written and read again: %v", err)
		}
		index := s.Snapshot().Index()
		if index > 1<<62 {
			return
		}
		for i, cmd := range []Command{samples()["register"], Deregister{Node: "fbservice1"}, KV{DeleteTree, Entry{}}} {
			apply(t, s, index+uint64(i)+1, cmd)
		}
	})
}

// FuzzInspect gives the stream as it is: checksums must hold back what they can.
func FuzzInspect(f *testing.F) {
	f.Add(snapshotOf(f, filled(f)))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := Inspect(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrSnapshot) {
				t.Errorf("Inspect = %v", err)
			}
			return
		}
		if info.Bytes != int64(len(b)) {
			t.Errorf("Inspect says %d bytes of %d", info.Bytes, len(b))
		}
	})
}

// FuzzMsgpack compares our measure of MessagePack with the library's decoder:
// what we let pass it must read to the same end.
func FuzzMsgpack(f *testing.F) {
	for c := range 256 { // each first byte there is, as the value of a key
		f.Add([]byte("\x81\xa1k" + string([]byte{byte(c), 0, 0, 0, 2}) + strings.Repeat("\x01", 40)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var v map[string]any
		d := codec.NewDecoderBytes(b, wire)
		theirs := d.Decode(&v)
		if ours := checkMsgpack(b); ours == nil && theirs == nil && d.NumBytesRead() != len(b) {
			t.Errorf("the library stopped at byte %d of %d", d.NumBytesRead(), len(b))
		}
	})
}

// reseal rewrites the checksums of whatever records b has.
func reseal(b []byte) []byte {
	if len(b) < headerSize {
		return b
	}
	var out bytes.Buffer
	w := newRecordWriter(&out)
	w.write(sealed(bytes.Clone(b[:headerSize-4])))
	for b = b[headerSize:]; len(b) >= 5 && b[0] != tagTrailer; {
		n := int(b[1])<<24 | int(b[2])<<16 | int(b[3])<<8 | int(b[4])
		if n > len(b)-5 {
			break
		}
		w.write(sealed(bytes.Clone(b[:5+n])))
		w.records++
		b = b[min(len(b), 5+n+4):]
	}
	w.trailer()
	if w.close() != nil {
		return nil
	}
	return out.Bytes()
}

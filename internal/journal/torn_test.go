package journal

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A record that was written in part is the last of all: where the other file goes
// on behind one, the disk has lost something that was acknowledged.
func TestNothingGoesOnBehindATornRecord(t *testing.T) {
	dir := t.TempDir()
	paths := [2]string{filepath.Join(dir, "0"), filepath.Join(dir, "1")}
	if err := Create(paths, 32<<10); err != nil {
		t.Fatal(err)
	}
	j, _, err := Open(paths)
	if err == nil {
		err = j.Reset()
	}
	for n := uint64(1); n <= 3 && err == nil; n++ { // two in one file and one in the other
		err = j.Append(n, make([]byte, 20*room-recordHead))
	}
	if err == nil {
		err = j.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if all, err := Read(paths); err != nil || len(all) != 3 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	generation := func(path string) (data []byte, of uint32) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data, binary.LittleEndian.Uint32(data)
	}
	older := paths[0]
	data, of := generation(older)
	if other, is := generation(paths[1]); is < of {
		older, data, of = paths[1], other, is
	}
	const behind = firstSector + 50
	putTag(data[behind*sectorSize:], of)
	if err := os.WriteFile(older, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := Read(paths); !errors.Is(err, ErrDamaged) {
		t.Errorf("%d records, %v; want that the damage is named", len(all), err)
	}
}

package vm

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// read returns the first byte of each of the first sectors.
func read(t *testing.T, d *Disk, sectors int) string {
	t.Helper()
	buf := make([]byte, sectors*sector)
	_, err := d.ReadAt(buf, 0)
	must(t, err)
	var first []byte
	for i := range sectors {
		first = append(first, buf[i*sector])
	}
	return strings.ReplaceAll(string(first), "\x00", "-")
}

// write fills sectors with the letters of a word.
func write(t *testing.T, d *Disk, at int, word string) {
	t.Helper()
	for i, letter := range word {
		_, err := d.WriteAt(bytes.Repeat([]byte{byte(letter)}, sector), int64(at+i)*sector)
		must(t, err)
	}
}

func TestDiskLosesWithItsPowerWhatWasNotFlushed(t *testing.T) {
	d := NewTestDisk(t, DiskOptions{Size: 10*sector - 1})
	if d.Size() != 10*sector {
		t.Errorf("its size is %d", d.Size())
	}
	write(t, d, 0, "aaaa")
	must(t, d.Flush())
	write(t, d, 2, "bbbb")
	if got := read(t, d, 8); got != "aabbbb--" {
		t.Errorf("before the power cut it has %q", got)
	}
	must(t, d.PowerCut())
	if got := read(t, d, 8); got != "aaaa----" {
		t.Errorf("after the power cut it has %q", got)
	}
	write(t, d, 4, "cc")
	must(t, d.Flush())
	must(t, d.PowerCut())
	if got := read(t, d, 8); got != "aaaacc--" {
		t.Errorf("flushed, it has after the power cut %q", got)
	}
	if s := d.Stats(); s != (DiskStats{Writes: 10, Flushes: 2, Lost: 4}) {
		t.Errorf("it counted %+v", s)
	}
}

func TestDiskWithSurvivorsKeepsSomeOfItsCacheByChance(t *testing.T) {
	after := func(seed uint64) string {
		d := NewTestDisk(t, DiskOptions{Size: 64 * sector, Survivors: rand.New(rand.NewPCG(seed, 0))})
		write(t, d, 0, strings.Repeat("a", 8))
		must(t, d.Flush())
		write(t, d, 0, strings.Repeat("b", 32))
		must(t, d.PowerCut())
		return read(t, d, 40)
	}
	first := after(1)
	if first != after(1) {
		t.Error("the same seed gives another disk")
	}
	if first == after(2) {
		t.Error("another seed gives the same disk")
	}
	for i, letter := range first {
		if want := map[bool]string{true: "ab", false: "-b"}[i < 8]; i < 32 && !strings.ContainsRune(want, letter) {
			t.Errorf("sector %d has %q, want one of %q", i, letter, want)
		}
	}
	if n := strings.Count(first, "b"); n < 8 || n > 24 {
		t.Errorf("%d of 32 sectors survived: %s", n, first)
	}
}

func TestDiskLosesItsPowerInTheMiddleOfAFlush(t *testing.T) {
	d := NewTestDisk(t, DiskOptions{Size: 10 * sector})
	write(t, d, 0, "aaaa")
	must(t, d.Flush())
	cut := d.CutAtFlush()
	must(t, d.Flush()) // of nothing
	write(t, d, 2, "bbbb")
	select {
	case <-cut:
		t.Error("cut before there was anything to flush")
	default:
	}
	if err := d.Flush(); err == nil {
		t.Error("flushed without power")
	}
	<-cut
	if _, err := d.WriteAt(make([]byte, sector), 0); err == nil {
		t.Error("written without power")
	}
	if _, err := d.ReadAt(make([]byte, sector), 0); err == nil {
		t.Error("read without power")
	}
	must(t, d.PowerCut())
	if got := read(t, d, 8); got != "aaaa----" {
		t.Errorf("after the power cut it has %q", got)
	}
	write(t, d, 4, "c")
	must(t, d.Flush())
	if s := d.Stats(); s.Lost != 4 {
		t.Errorf("it counted %+v", s)
	}
}

func TestDiskIsSavedToAFile(t *testing.T) {
	d := NewTestDisk(t, DiskOptions{Size: 200 << 10})
	write(t, d, 399, "z")
	file := filepath.Join(t.TempDir(), "image")
	must(t, d.Save(file))
	data, err := os.ReadFile(file)
	must(t, err)
	if len(data) != 200<<10 || data[399*sector] != 'z' || data[399*sector-1] != 0 {
		t.Errorf("the file of %d bytes is another", len(data))
	}
}

// The whole chain: the machine's page cache, its file system, the disk's cache.
func TestPowerCutLosesWhatWasNotSyncedAndKeepsTheRest(t *testing.T) {
	files := NewTestDisk(t, DiskOptions{Size: 16 << 20})
	raw := NewTestDisk(t, DiskOptions{Size: 1 << 20})
	m := NewTest(t, Options{CPUs: 1, Modules: []string{"ext4"}, Disks: []*Disk{files, raw}})
	run(t, m, `
		# Nothing is written back by its age: the power cut comes before.
		echo 0 >/proc/sys/vm/dirty_writeback_centisecs
		mkfs.ext4 -q /dev/vda
		mkdir /srv/data && mount -o commit=300 /dev/vda /srv/data
		cd /srv/data
		echo new >replaced; sync .; sync -f .
		echo synced >synced; sync synced .
		echo unsynced >unsynced
		echo newer >replaced.new; mv replaced.new replaced
		test "$(cat synced unsynced replaced | xargs)" = "synced unsynced newer"
		printf flushed | dd of=/dev/vdb bs=512 conv=sync,fsync oflag=direct status=none
		printf cached | dd of=/dev/vdb bs=512 seek=1 conv=sync oflag=direct status=none`)
	if got := read(t, raw, 2); got != "fc" {
		t.Errorf("before the power cut the raw disk has %q", got)
	}
	must(t, m.PowerOff())
	if got := read(t, raw, 2); got != "f-" {
		t.Errorf("after the power cut the raw disk has %q, want what was flushed", got)
	}
	must(t, m.PowerOn(limited(t)))
	out := run(t, m, `
		e2fsck -p /dev/vda >/dev/null
		mkdir /srv/data && mount /dev/vda /srv/data && cd /srv/data
		cat synced; cat unsynced || echo lost; cat replaced`)
	if out != "synced\nlost\nnew" {
		t.Errorf("after the power cut there is\n%s\nwant what was synced, and nothing else", out)
	}
}

package debian

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// elf is a kernel, as far as this package looks.
const elf = "\x7fELF and a kernel"

// bzImage returns an image with a payload, as the kernel's build makes it.
func bzImage(payload []byte) []byte {
	const offset, sectors = 64, 2
	image := make([]byte, (sectors+1)*512+offset+len(payload))
	image[0x1f1] = sectors
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x020f)
	binary.LittleEndian.PutUint32(image[0x248:], offset)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	copy(image[(sectors+1)*512+offset:], payload)
	return image
}

func gzipped(t testing.TB, text string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write([]byte(text))
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.AppendUint32(buf.Bytes(), uint32(len(text)))
}

func TestImageGivesUpItsKernel(t *testing.T) {
	cmd := exec.Command("xz", "-c", "--check=crc32")
	cmd.Stdin = strings.NewReader(elf)
	xz, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, payload := range map[string][]byte{
		"gzip": gzipped(t, elf),
		"xz":   binary.LittleEndian.AppendUint32(xz, uint32(len(elf))),
	} {
		if kernel, err := unpackImage(bzImage(payload)); err != nil || string(kernel) != elf {
			t.Errorf("%s: got %q, %v", name, kernel, err)
		}
	}
	for want, image := range map[string][]byte{
		"not a bzImage":           []byte(elf),
		"an unknown compression":  bzImage([]byte(elf)),
		"no ELF file":             bzImage(gzipped(t, "text")),
		"is not within its":       bzImage(gzipped(t, elf))[:1600],
		"boot protocol 0x20f00 h": nil,
	} {
		if image == nil {
			image, want = bzImage(nil), "has no payload"
			binary.LittleEndian.PutUint16(image[0x206:], 0x0200)
		}
		if _, err := unpackImage(image); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

func FuzzUnpackImage(f *testing.F) {
	f.Add(bzImage(gzipped(f, elf)))
	f.Add(bzImage([]byte("\x1f\x8b")))
	f.Fuzz(func(t *testing.T, image []byte) {
		// xz and zstd are others' programs, and slow to start.
		if bytes.Contains(image, []byte("\xfd7zXZ")) || bytes.Contains(image, []byte("\x28\xb5\x2f\xfd")) {
			return
		}
		_, _ = unpackImage(image)
	})
}

func TestModulesComeInTheOrderInWhichToLoadThem(t *testing.T) {
	k := &Kernel{Dir: t.TempDir(), Release: "6.1"}
	write(t, filepath.Join(k.ModuleDir(), "modules.dep"), `kernel/net/ip_vs.ko: kernel/net/nf_conntrack.ko kernel/net/nf_defrag.ko kernel/lib/libcrc32c.ko
kernel/net/nf_conntrack.ko: kernel/net/nf_defrag.ko kernel/lib/libcrc32c.ko
kernel/net/nf_defrag.ko:
kernel/lib/libcrc32c.ko:
kernel/net/ip_vs_rr.ko.xz: kernel/net/ip_vs.ko kernel/net/nf_conntrack.ko kernel/net/nf_defrag.ko kernel/lib/libcrc32c.ko
kernel/fs/a-b.ko:
`)
	write(t, filepath.Join(k.ModuleDir(), "modules.builtin"), "kernel/fs/built-in.ko\n")
	got, err := k.Modules("a_b", "ip-vs-rr", "built_in", "ip_vs")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"kernel/fs/a-b.ko", "kernel/lib/libcrc32c.ko", "kernel/net/nf_defrag.ko", "kernel/net/nf_conntrack.ko",
		"kernel/net/ip_vs.ko", "kernel/net/ip_vs_rr.ko.xz",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := k.Modules("a_b", "no_such", "nor_this"); err == nil ||
		!strings.Contains(err.Error(), `"no_such"`) || !strings.Contains(err.Error(), `"nor_this"`) {
		t.Errorf("two unknown modules: %v", err)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// mirror stands in for apt: it has one version of the kernel package, and notes
// what it is asked.
type mirror struct {
	t   *testing.T
	dir string
}

const fakeAptCache = `#!/bin/sh
[ ! -e %[1]s/unknown ] || exit 100
case $1 in
depends) echo "  Depends: linux-image-6.1.0-1-amd64" ;;
policy) echo "  Candidate: $(cat %[1]s/version)" ;;
esac
`

const fakeAptGet = `#!/bin/sh
echo "$*" >>%[1]s/log
case "$*" in
*download*)
	[ ! -e %[1]s/broken ] || { echo "404" >&2; exit 100; }
	cp %[1]s/package.deb .
	;;
esac
`

func newMirror(t *testing.T) *mirror {
	m := &mirror{t, t.TempDir()}
	t.Setenv("LAB_CACHE", filepath.Join(m.dir, "cache"))
	t.Setenv("PATH", filepath.Join(m.dir, "bin")+":"+os.Getenv("PATH"))
	write(t, filepath.Join(m.dir, "bin/apt-cache"), fmt.Sprintf(fakeAptCache, m.dir))
	write(t, filepath.Join(m.dir, "bin/apt-get"), fmt.Sprintf(fakeAptGet, m.dir))
	tree := filepath.Join(m.dir, "tree")
	write(t, filepath.Join(tree, "DEBIAN/control"), "Package: linux-image\nVersion: 1\nArchitecture: all\nMaintainer: none\nDescription: a kernel\n")
	write(t, filepath.Join(tree, "boot/vmlinuz-6.1.0-1-amd64"), string(bzImage(gzipped(t, elf))))
	write(t, filepath.Join(tree, "lib/modules/6.1.0-1-amd64/modules.builtin"), "kernel/fs/ext4.ko\n")
	write(t, filepath.Join(tree, "lib/modules/6.1.0-1-amd64/modules.order"), "")
	write(t, filepath.Join(tree, "lib/modules/6.1.0-1-amd64/kernel/sound/core/snd.ko"), "")
	write(t, filepath.Join(tree, "usr/share/doc/linux-image/copyright"), "")
	if out, err := exec.Command("dpkg-deb", "-b", tree, filepath.Join(m.dir, "package.deb")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.publish("6.1.1-1")
	return m
}

func (m *mirror) publish(version string) { write(m.t, filepath.Join(m.dir, "version"), version) }

// forget is what a new package list comes to.
func (m *mirror) forget() {
	if err := os.Remove(filepath.Join(m.dir, "cache", answerFile)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mirror) downloads() int {
	log, err := os.ReadFile(filepath.Join(m.dir, "log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	return strings.Count(string(log), "download")
}

func (m *mirror) get() *Kernel {
	m.t.Helper()
	k, err := Get(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	return k
}

func TestKernelIsDownloadedOnceForAllWhoAsk(t *testing.T) {
	m := newMirror(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := Get(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	m.forget()
	k := m.get()
	if n := m.downloads(); n != 1 {
		t.Errorf("%d downloads, want 1", n)
	}
	if k.Version != "6.1.1-1" || k.Release != "6.1.0-1-amd64" || k.Package != "linux-image-6.1.0-1-amd64" {
		t.Errorf("the kernel is %+v", k)
	}
	if data, err := os.ReadFile(k.Image()); err != nil || string(data) != elf {
		t.Errorf("its image has %q, %v", data, err)
	}
	for name, want := range map[string]bool{
		"modules.builtin": true, "modules.dep": true, "kernel/sound/core/snd.ko": false, "../../../usr/share/doc": false,
	} {
		if _, err := os.Stat(filepath.Join(k.ModuleDir(), name)); (err == nil) != want {
			t.Errorf("%s: %v; want there: %v", name, err, want)
		}
	}
}

func TestSecurityUpdateBringsANewKernel(t *testing.T) {
	m := newMirror(t)
	m.get()
	m.publish("1:6.1.2-1~deb12")
	m.forget()
	if k := m.get(); k.Version != "1:6.1.2-1~deb12" {
		t.Errorf("after an update the kernel is %s", k.Version)
	}
	if n := m.downloads(); n != 2 {
		t.Errorf("%d downloads, want 2", n)
	}
	// Where nobody can be asked, the newest there is.
	write(t, filepath.Join(m.dir, "unknown"), "")
	old := filepath.Join(m.dir, "cache/kernel/linux-image-6.1.0-1-amd64_6.1.1-1")
	if err := os.Chtimes(old, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	m.forget()
	if k := m.get(); k.Version != "1:6.1.2-1~deb12" {
		t.Errorf("without apt's knowledge the kernel is %s", k.Version)
	}
}

func TestHalfADownloadIsNeverUsed(t *testing.T) {
	m := newMirror(t)
	write(t, filepath.Join(m.dir, "broken"), "")
	if _, err := Get(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a mirror without the package: %v", err)
	}
	if err := os.Remove(filepath.Join(m.dir, "broken")); err != nil {
		t.Fatal(err)
	}
	// What a process leaves that was killed in the middle.
	half := filepath.Join(m.dir, "cache/kernel/.new-1")
	write(t, filepath.Join(half, "tree/lib/modules/6.1.0-1-amd64/modules.builtin"), "")
	m.get()
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a download is still there: %v", err)
	}
}

func TestInitrdHasTheProgramAndTheModules(t *testing.T) {
	m := newMirror(t)
	k := m.get()
	dep := ""
	for _, name := range initrdModules() {
		dep += name + ".ko:\n"
		write(t, filepath.Join(k.ModuleDir(), name+".ko"), "module "+name)
	}
	write(t, filepath.Join(k.ModuleDir(), "modules.dep"), dep)
	guest := filepath.Join(m.dir, "guest")
	write(t, guest, "the program")
	first, err := k.Initrd(guest)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"modules/00-virtio_pci.ko", "module overlay", "init\x00", "the program", trailer} {
		if !bytes.Contains(data, []byte(want)) {
			t.Errorf("it has no %q", want)
		}
	}
	if again, err := k.Initrd(guest); err != nil || again != first {
		t.Errorf("the same once more is %s, %v; want %s", again, err, first)
	}
	write(t, guest, "another program")
	if other, err := k.Initrd(guest); err != nil || other == first {
		t.Errorf("with another program it is %s, %v", other, err)
	}
}

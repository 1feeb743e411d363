package deb

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/lab/aptorigin"
)

const hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

const release = `Origin: Debian
Suite: stable
Codename: bookworm
Date: Sat, 01 Nov 2025 09:52:00 UTC
Valid-Until: Sat, 08 Nov 2025 09:52:00 UTC
Acquire-By-Hash: yes
MD5Sum:
 d41d8cd98f00b204e9800998ecf8427e 0 main/binary-amd64/Packages
SHA256:
 ` + hash + ` 0 main/binary-amd64/Packages
 ` + hash + `        12 main/source/Sources.xz
`

func TestReleaseNamesItsIndicesByPathAndByHash(t *testing.T) {
	rel, err := ParseRelease(strings.NewReader(release))
	if err != nil {
		t.Fatal(err)
	}
	if rel.Codename != "bookworm" || !rel.ByHash || rel.ValidUntil.Sub(rel.Date) != 7*24*time.Hour {
		t.Errorf("%+v", rel)
	}
	for path, want := range map[string]string{
		"main/binary-amd64/Packages":                                         "main/binary-amd64/Packages",
		"main/source/Sources.xz":                                             "main/source/Sources.xz",
		"main/binary-amd64/by-hash/SHA256/" + hash:                           "main/binary-amd64/Packages",
		"main/binary-amd64/by-hash/MD5Sum/d41d8cd98f00b204e9800998ecf8427e":  "main/binary-amd64/Packages",
		"main/source/by-hash/SHA256/" + hash:                                 "main/source/Sources.xz",
		"main/source/by-hash/MD5Sum/d41d8cd98f00b204e9800998ecf8427e":        "", // another directory's
		"main/binary-amd64/by-hash/SHA256/" + strings.Repeat("0", len(hash)): "",
		"main/binary-amd64/by-hash/SHA256/short":                             "",
		"other":                                                              "",
	} {
		f, ok := rel.Find(path)
		if ok != (want != "") || f.Path != want {
			t.Errorf("%s: %+v, %v, want %q", path, f, ok, want)
		}
	}
}

func TestReleaseThatProvesNothingIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"empty":            "",
		"no hashes":        "Suite: stable\nDate: Sat, 01 Nov 2025 09:52:00 UTC\n",
		"MD5 alone":        "MD5Sum:\n d41d8cd98f00b204e9800998ecf8427e 0 Packages\n",
		"climbing path":    "SHA256:\n " + hash + " 0 ../../etc/passwd\n",
		"absolute path":    "SHA256:\n " + hash + " 0 /etc/passwd\n",
		"short hash":       "SHA256:\n abcd 0 Packages\n",
		"negative size":    "SHA256:\n " + hash + " -1 Packages\n",
		"two paragraphs":   release + "\n" + release,
		"a page":           "<html><body>Please log in</body></html>",
		"date that is not": "Date: tomorrow\nSHA256:\n " + hash + " 0 Packages\n",
	} {
		if rel, err := ParseRelease(strings.NewReader(text)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %+v, %v", name, rel, err)
		}
	}
}

func collect(t *testing.T, dir, name, text string) (list []Package) {
	t.Helper()
	err := ReadIndex(dir, name, strings.NewReader(text), func(p Package) error {
		list = append(list, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestIndicesOfAllKindsVouchForTheirFiles(t *testing.T) {
	sum, err := ParseSum(hash)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ text, path string }{
		"main/binary-amd64/Packages":            {"Package: a\nVersion: 1\nFilename: pool/a_1.deb\nSize: 7\nSHA256: " + hash + "\n\nPackage: unproven\nFilename: x\n", "pool/a_1.deb"},
		"main/source/Sources":                   {"Package: a\nDirectory: pool/a\nChecksums-Sha256:\n " + hash + " 7 a.dsc\n", "pool/a/a.dsc"},
		"main/binary-amd64/Packages.diff/Index": {"SHA256-Download:\n " + hash + " 7 T-1.gz\n", "dists/x/main/binary-amd64/Packages.diff/T-1.gz"},
		"main/installer/SHA256SUMS":             {hash + "  ./netboot/mini.iso\n", "dists/x/main/installer/netboot/mini.iso"},
	} {
		list := collect(t, "dists/x", name, test.text)
		size := int64(7)
		if strings.HasSuffix(name, "SUMS") {
			size = SizeUnknown
		}
		if len(list) != 1 || len(list[0].Files) != 1 {
			t.Errorf("%s: %+v", name, list)
			continue
		}
		if diff := cmp.Diff(File{test.path, size, sum}, list[0].Files[0]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestIndexIsUnpackedByItsSuffix(t *testing.T) {
	text := []byte("Package: a\nVersion: 1\nFilename: pool/a_1.deb\nSize: 7\nSHA256: " + hash + "\n")
	for suffix, program := range map[string]string{"": "cat", ".gz": "gzip", ".xz": "xz", ".bz2": "bzip2", ".zst": "zstd", ".lzma": "xz --format=lzma"} {
		words := strings.Fields(program)
		if _, err := exec.LookPath(words[0]); err != nil {
			continue // not every machine has all of them
		}
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Stdin = bytes.NewReader(text)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if list := collect(t, ".", "Packages"+suffix, string(packed)); len(list) != 1 || list[0].Name != "a" {
			t.Errorf("%q: %+v", suffix, list)
		}
	}
}

// signed makes a repository with one suite.
func signed(t *testing.T) (*aptorigin.Repository, *Keyring) {
	t.Helper()
	repo, err := aptorigin.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(repo.Keyring)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := ReadKeyring(key)
	if err != nil {
		t.Fatal(err)
	}
	return repo, ring
}

func TestASignatureIsOfTheKeyringsKeysAndOfTheWholeText(t *testing.T) {
	repo, ring := signed(t)
	_, stranger := signed(t)
	data, err := repo.ClearSign([]byte(release))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	text, err := ring.Inline(data, now)
	if err != nil || string(text) != release {
		t.Fatalf("%q, %v", text, err)
	}
	if _, err := Join(stranger, ring).Inline(data, now); err != nil {
		t.Errorf("one of two keys: %v", err)
	}
	for name, test := range map[string]struct {
		ring *Keyring
		data []byte
	}{
		"another key":  {stranger, data},
		"no keys":      {NoKeys(), data},
		"changed":      {ring, bytes.Replace(data, []byte("bookworm"), []byte("sarge"), 1)},
		"text before":  {ring, append([]byte("Suite: evil\n"), data...)},
		"text after":   {ring, append(bytes.Clone(data), "Suite: evil\n"...)},
		"not signed":   {ring, []byte(release)},
		"no signature": {ring, data[:bytes.Index(data, []byte("-----BEGIN PGP SIGNATURE"))]},
	} {
		if text, err := test.ring.Inline(test.data, now); err == nil {
			t.Errorf("%s: accepted as %q", name, text)
		}
	}
}

func TestDebiansOwnKeyringIsRead(t *testing.T) {
	data, err := os.ReadFile("/usr/share/keyrings/debian-archive-keyring.gpg")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("debian-archive-keyring is not installed")
		}
		t.Skip("debian-archive-keyring is not installed")
	}
	if ring, err := ReadKeyring(data); err != nil || len(ring.keys) < 3 {
		t.Error(err)
	}
}

func TestReleaseGPGOfRealPrograms(t *testing.T) {
	if _, err := exec.LookPath("apt-ftparchive"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("apt-ftparchive is missing: run hack/deps")
		}
		t.Skip("apt-ftparchive is missing: run hack/deps")
	}
	repo, ring := signed(t)
	if err := repo.Add(aptorigin.Package{Name: "a", Version: "1"}); err != nil {
		t.Fatal(err)
	}
	if err := repo.Publish(context.Background(), aptorigin.Release{Suite: "test", ValidFor: time.Hour}); err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(repo.Dir, "dists/test", name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	plain, signature := read("Release"), read("Release.gpg")
	if err := ring.Detached(plain, signature, time.Now()); err != nil {
		t.Error(err)
	}
	if err := ring.Detached(append(plain, '\n'), signature, time.Now()); !errors.Is(err, ErrSignature) {
		t.Errorf("a changed Release: %v", err)
	}
	rel, err := ParseRelease(bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := rel.Files["main/binary-amd64/Packages.gz"]; !ok || rel.ValidUntil.IsZero() {
		t.Errorf("%+v", rel)
	}
}

func FuzzRelease(f *testing.F) {
	f.Add([]byte(release))
	f.Add([]byte("SHA256:\n " + hash + " 0 a/by-hash/SHA256/" + hash + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rel, err := ParseRelease(bytes.NewReader(data))
		if err != nil {
			return
		}
		for name, file := range rel.Files {
			if strings.HasPrefix(name, "/") || name == ".." || strings.HasPrefix(name, "../") || file.Size < 0 {
				t.Errorf("%q: %+v", name, file)
			}
			if found, ok := rel.Find(file.ByHashPath()); !ok || found.Sum != file.Sum {
				t.Errorf("%q is not found by its hash", name)
			}
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add("Packages", []byte("Package: a\nFilename: pool/a\nSize: 7\nSHA256: "+hash+"\n"))
	f.Add("Sources", []byte("Directory: pool\nChecksums-Sha256:\n "+hash+" 7 a.dsc\n"))
	f.Add("Packages.diff/Index", []byte("SHA256-Download:\n "+hash+" 7 T-1.gz\n"))
	f.Add("SHA256SUMS", []byte(hash+"  ./x\n"))
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write([]byte("Package: a\n"))
	_ = w.Close()
	f.Add("Packages.gz", packed.Bytes())
	f.Add("Packages.xz", []byte("\xfd7zXZ\x00"))
	f.Add("Packages.zst", []byte("\x28\xb5\x2f\xfd"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		_ = ReadIndex("dists/x", name, bytes.NewReader(data), func(p Package) error {
			for _, file := range p.Files {
				if strings.HasPrefix(file.Path, "/") || file.Path == ".." || strings.HasPrefix(file.Path, "../") || file.Size < SizeUnknown {
					t.Errorf("%+v", file)
				}
			}
			return nil
		})
	})
}

func FuzzInline(f *testing.F) {
	repo, err := aptorigin.New(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	key, err := os.ReadFile(repo.Keyring)
	if err != nil {
		f.Fatal(err)
	}
	ring, err := ReadKeyring(key)
	if err != nil {
		f.Fatal(err)
	}
	good, err := repo.ClearSign([]byte(release))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		// Nobody but the key's holder makes a text that is accepted.
		text, err := ring.Inline(data, time.Now())
		if err == nil && strings.TrimRight(string(text), " \t\r\n") != strings.TrimRight(release, "\n") && !bytes.Equal(data, good) {
			if diff := cmp.Diff(strings.Fields(release), strings.Fields(string(text))); diff != "" {
				t.Errorf("accepted: %s", diff)
			}
		}
	})
}

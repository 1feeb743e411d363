// Package aptorigin makes signed Debian repositories for tests: apt-ftparchive
// writes their indices, and real apt-get believes them.
package aptorigin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
)

// Repository is a directory that an HTTP server may serve.
type Repository struct {
	Dir     string // the root: dists and pool are in it
	Keyring string // the public key, for signed-by

	key     *openpgp.Entity
	pushes  int
	patches map[string][]patch // by the directory of the index
}

// New makes an empty repository in dir, with a key of its own.
func New(dir string) (*Repository, error) {
	key, err := openpgp.NewEntity("Lab", "", "lab@example.com", nil)
	if err != nil {
		return nil, err
	}
	r := &Repository{Dir: filepath.Join(dir, "repository"), Keyring: filepath.Join(dir, "keyring.asc"), key: key}
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return nil, err
	}
	var public bytes.Buffer
	w, err := armor.Encode(&public, openpgp.PublicKeyType, nil)
	if err != nil {
		return nil, err
	}
	if err := key.Serialize(w); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return r, os.WriteFile(r.Keyring, append(public.Bytes(), '\n'), 0o644)
}

// Add puts packages into the pool. They are in a suite when it is published.
func (r *Repository) Add(packages ...Package) error {
	for _, p := range packages {
		data, err := p.build()
		if err != nil {
			return err
		}
		path := filepath.Join(r.Dir, p.pool())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Release says how a suite is published.
type Release struct {
	Suite    string
	Date     time.Time     // zero: now
	ValidFor time.Duration // zero: for ever
	NoByHash bool
	Unsigned bool // neither InRelease nor Release.gpg
	NoInline bool // Release and Release.gpg alone
	Diffs    bool // Packages.diff, too
}

// Publish makes dists/SUITE of all that is in the pool: the indices first, then
// the signed Release, as mirrors are updated.
func (r *Repository) Publish(ctx context.Context, rel Release) error {
	suite := filepath.Join(r.Dir, "dists", rel.Suite)
	index := filepath.Join(suite, "main", "binary-amd64")
	if err := os.MkdirAll(index, 0o755); err != nil {
		return err
	}
	packages, err := r.run(ctx, "packages", "pool")
	if err != nil {
		return err
	}
	if rel.Diffs {
		if err := r.diff(ctx, index, packages); err != nil {
			return err
		}
	}
	if err := writeIndex(index, "Packages", packages, rel); err != nil {
		return err
	}
	sources, err := r.run(ctx, "sources", "pool")
	if err != nil {
		return err
	}
	if len(sources) > 0 {
		if err := writeIndex(filepath.Join(suite, "main", "source"), "Sources", sources, rel); err != nil {
			return err
		}
	}
	for _, old := range []string{"InRelease", "Release", "Release.gpg"} {
		if rel.Unsigned || rel.NoInline { // apt-ftparchive would list them
			_ = os.Remove(filepath.Join(suite, old))
		}
	}
	text, err := r.release(ctx, rel)
	if err != nil {
		return err
	}
	if err := r.sign(suite, text, rel); err != nil {
		return err
	}
	// HTTP's dates are of seconds, and tests push more often.
	r.pushes++
	at := time.Now().Add(time.Duration(r.pushes) * time.Second)
	for _, name := range []string{"InRelease", "Release", "Release.gpg", "main/binary-amd64/Packages", "main/binary-amd64/Packages.gz"} {
		if err := os.Chtimes(filepath.Join(suite, name), at, at); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// writeIndex puts an index in place, compressed and by its hash, too.
func writeIndex(dir, name string, data []byte, rel Release) error {
	packed, err := compress(data)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{name: data, name + ".gz": packed} {
		if err := replace(filepath.Join(dir, name), data); err != nil {
			return err
		}
		if rel.NoByHash {
			continue
		}
		if err := replace(filepath.Join(dir, "by-hash", "SHA256", fmt.Sprintf("%x", sha256.Sum256(data))), data); err != nil {
			return err
		}
	}
	return nil
}

// release writes the text of a Release.
func (r *Repository) release(ctx context.Context, rel Release) ([]byte, error) {
	date := rel.Date
	if date.IsZero() {
		date = time.Now()
	}
	field := func(name, value string) string { return "APT::FTPArchive::Release::" + name + "=" + value }
	args := []string{
		"-o", field("Suite", rel.Suite), "-o", field("Codename", rel.Suite), "-o", field("Origin", "Lab"),
		"-o", field("Architectures", "amd64"), "-o", field("Components", "main"),
	}
	text, err := r.run(ctx, append(args, "release", filepath.Join("dists", rel.Suite))...)
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		// Of what is there only the indices count.
		if strings.Contains(line, "by-hash/") || strings.HasSuffix(line, " Release") || strings.HasSuffix(line, " InRelease") || strings.HasSuffix(line, " Release.gpg") {
			continue
		}
		if strings.HasPrefix(line, "Date:") {
			line = "Date: " + stamp(date)
			if rel.ValidFor != 0 {
				line += "\nValid-Until: " + stamp(date.Add(rel.ValidFor))
			}
			if !rel.NoByHash {
				line += "\nAcquire-By-Hash: yes"
			}
		}
		out = append(out, line)
	}
	return []byte(strings.Join(out, "\n") + "\n"), nil
}

func stamp(t time.Time) string { return t.UTC().Format("Mon, 02 Jan 2006 15:04:05") + " UTC" }

func (r *Repository) sign(suite string, text []byte, rel Release) error {
	if !rel.Unsigned {
		var detached bytes.Buffer
		if err := openpgp.ArmoredDetachSign(&detached, r.key, bytes.NewReader(text), nil); err != nil {
			return err
		}
		if err := replace(filepath.Join(suite, "Release.gpg"), append(detached.Bytes(), '\n')); err != nil {
			return err
		}
	}
	if err := replace(filepath.Join(suite, "Release"), text); err != nil {
		return err
	}
	if rel.Unsigned || rel.NoInline {
		return nil
	}
	inline, err := r.ClearSign(text)
	if err != nil {
		return err
	}
	return replace(filepath.Join(suite, "InRelease"), inline)
}

// ClearSign signs a text with the repository's key.
func (r *Repository) ClearSign(text []byte) ([]byte, error) {
	var inline bytes.Buffer
	w, err := clearsign.Encode(&inline, r.key.PrivateKey, nil)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return append(inline.Bytes(), '\n'), nil
}

// replace puts a file in place at once, as rsync does.
func replace(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

func (r *Repository) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "apt-ftparchive", args...)
	cmd.Dir = r.Dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("apt-ftparchive %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

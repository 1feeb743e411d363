package aptproxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"

	"holdfast/aptproxy/cas"
	"holdfast/aptproxy/deb"
	"holdfast/internal/state"
)

// A frozen Release runs past its Valid-Until, and then apt refuses it. Signed
// anew it says the same, but for that date. Only the node that freezes needs the
// key. The others believe the document for what it says, not for who wrote it:
// the original is verified as ever, and what was signed must be that text.

// keyringPath is where clients get the public key.
const keyringPath = "/holdfast-apt.asc"

// resigned is a Release that the cluster's own key signed.
type resigned struct {
	Inline    []byte `json:"inline"` // gzip, as the next
	Signature []byte `json:"signature"`
	Key       []byte `json:"key"` // the public one, armored
}

// loadSigner reads the cluster's own key. The file must be private: who has it
// may tell every client what to install.
func loadSigner(path string) (*deb.Signer, error) {
	if path == "" {
		return nil, fmt.Errorf("%w: there is no key to sign with: make one by holdfast apt signing-key, and name it as apt.sign_key in the cluster file", state.ErrInvalid)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w: apt.sign_key: %w", state.ErrInvalid, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: apt.sign_key: %s has mode %04o, so others may read it: chmod 600", state.ErrInvalid, path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: apt.sign_key: %w", state.ErrInvalid, err)
	}
	signer, err := deb.ReadSigner(data)
	if err != nil {
		return nil, fmt.Errorf("%w: apt.sign_key: %s: %w", state.ErrInvalid, path, err)
	}
	return signer, nil
}

// resign signs what a document holds; text is its Release's.
func (s *Server) resign(signer *deb.Signer, text []byte) (*resigned, error) {
	key, err := signer.Public()
	if err != nil {
		return nil, err
	}
	inline, detached, err := signer.Sign(deb.Undated(text), s.now())
	if err != nil {
		return nil, err
	}
	return &resigned{pack(inline), pack(detached), key}, nil
}

// generation makes the generation that clients see instead of the original,
// whose text is given.
func (re *resigned) generation(s *Server, dir string, text []byte, doc frozenSuite) (*generation, error) {
	inline, err := expand(re.Inline)
	if err != nil {
		return nil, err
	}
	signature, err := expand(re.Signature)
	if err != nil {
		return nil, err
	}
	undated := deb.Undated(text)
	keys, err := deb.ReadKeyring(re.Key)
	if err != nil {
		return nil, err
	}
	says, err := keys.Inline(inline, doc.Frozen)
	if err == nil && !bytes.Equal(normal(says), normal(undated)) {
		err = errors.New("what was signed anew is not what the repository signed")
	}
	if err == nil {
		err = keys.Detached(undated, signature, doc.Frozen)
	}
	if err != nil {
		return nil, err
	}
	return newGeneration(dir, s.keepRelease(dir, inline, undated, signature), undated, doc.Published)
}

// keepRelease stores the files of a Release; nil ones are absent.
func (s *Server) keepRelease(dir string, inline, plain, signature []byte) releaseBlobs {
	keep := func(data []byte) string {
		if data == nil {
			return ""
		}
		sum := cas.Sum(sha(data))
		if _, err := s.store.Put(data, s.now()); err != nil {
			s.log.Warn("a frozen Release can't be stored", "suite", dir, "error", err)
		}
		s.keepInMemory(sum, data)
		return sum.String()
	}
	return releaseBlobs{keep(inline), keep(plain), keep(signature)}
}

// serveKeyring gives clients the keys by which frozen suites are signed.
func (s *Server) serveKeyring(w http.ResponseWriter) {
	var keys [][]byte
	if v := s.views.Load(); v != nil {
		for _, one := range v.list {
			for _, doc := range one.docs {
				if doc.Resigned != nil && !slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, doc.Resigned.Key) }) {
					keys = append(keys, doc.Resigned.Key)
				}
			}
		}
	}
	if path := s.active.Load().settings.signKey; len(keys) == 0 && path != "" {
		if signer, err := loadSigner(path); err == nil {
			if key, err := signer.Public(); err == nil {
				keys = append(keys, key)
			}
		}
	}
	if len(keys) == 0 {
		http.Error(w, "no suite is frozen under a key of this cluster: holdfast apt freeze --resign", http.StatusNotFound)
		return
	}
	slices.SortFunc(keys, bytes.Compare)
	w.Header().Set("Content-Type", "application/pgp-keys")
	_, _ = w.Write(bytes.Join(keys, nil)) // the client is gone: nobody to tell
}

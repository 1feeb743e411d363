package raftstore

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A sealed snapshot is
//
//	"HFSEAL1\n" | salt, 32 bytes | chunk ...
//
// A chunk is 64 KiB of the snapshot, the last one less, encrypted by
// AES-256-GCM. The key is HKDF-SHA-256 of the cluster's secret with the salt, of
// which the last 8 bytes say which secret that is (SecretID) and the others are
// random; those of earlier versions are all random. The nonce is the chunk's
// number and whether it is the last, so that chunks can be neither exchanged nor
// left out, also at the end (the STREAM construction of Hoang, Reyhanitabar,
// Rogaway and Vizár).
const (
	sealMagic = "HFSEAL1\n"
	sealSalt  = 32
	sealChunk = 64 << 10
	sealInfo  = "holdfast snapshot, AES-256-GCM in chunks"
	sealID    = 8
	idInfo    = "holdfast snapshot, which secret"
)

// ErrSealed: a sealed snapshot that this key does not open: it is of another
// cluster, of a time before the key was changed, damaged, or cut.
var ErrSealed = errors.New("the key does not open it: it is another cluster's or an older key, or the file is damaged")

func sealCipher(secret, salt []byte) (cipher.AEAD, error) {
	if len(secret) < 16 {
		return nil, fmt.Errorf("a secret of %d bytes: at least 16 are needed", len(secret))
	}
	key, err := hkdf.Key(sha256.New, secret, salt, sealInfo, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// SecretID names a secret without giving it away: 8 bytes of HKDF-SHA-256.
func SecretID(secret []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, secret, nil, idInfo, sealID)
}

func sealNonce(chunk uint64, last bool) []byte {
	nonce := binary.BigEndian.AppendUint64(nil, chunk)
	return append(nonce, 0, 0, 0, byte(oneIf(last)))
}

// Seal returns a writer that encrypts into w with the cluster's secret, its
// gossip key. Close writes the end, and does not close w.
func Seal(w io.Writer, secret []byte) (io.WriteCloser, error) {
	salt := make([]byte, sealSalt)
	rand.Read(salt) // never fails since Go 1.24
	id, err := SecretID(secret)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	copy(salt[sealSalt-sealID:], id)
	aead, err := sealCipher(secret, salt)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if _, err := w.Write(append([]byte(sealMagic), salt...)); err != nil {
		return nil, err
	}
	return &sealer{w: w, aead: aead, plain: make([]byte, 0, sealChunk)}, nil
}

type sealer struct {
	w     io.Writer
	aead  cipher.AEAD
	plain []byte // not encrypted yet
	chunk uint64
}

func (s *sealer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if len(s.plain) == sealChunk { // there is more: it is not the last
			if err := s.flush(false); err != nil {
				return n, err
			}
		}
		take := min(len(p), sealChunk-len(s.plain))
		s.plain = append(s.plain, p[:take]...)
		p, n = p[take:], n+take
	}
	return n, nil
}

func (s *sealer) flush(last bool) error {
	_, err := s.w.Write(s.aead.Seal(nil, sealNonce(s.chunk, last), s.plain, nil))
	s.chunk++
	s.plain = s.plain[:0]
	return err
}

func (s *sealer) Close() error { return s.flush(true) }

// IsSealed tells whether a file begins like a sealed snapshot.
func IsSealed(head []byte) bool { return bytes.HasPrefix(head, []byte(sealMagic)) }

// OpenSealed returns a reader of what was sealed with one of the secrets. What it
// gives was verified chunk by chunk; that it is whole is known when it has given
// io.EOF.
func OpenSealed(r io.Reader, secrets ...[]byte) (io.Reader, error) {
	head := make([]byte, len(sealMagic)+sealSalt)
	if _, err := io.ReadFull(r, head); err != nil || !IsSealed(head) {
		return nil, fmt.Errorf("it is no sealed snapshot: %w", errors.Join(ErrSealed, err))
	}
	salt := head[len(sealMagic):]
	o := &opener{tried: make([]string, 0, len(secrets)), named: fmt.Sprintf("%x", salt[sealSalt-sealID:])}
	for _, secret := range secrets {
		id, err := SecretID(secret)
		if err != nil {
			return nil, err
		}
		aead, err := sealCipher(secret, salt)
		if err != nil {
			return nil, err
		}
		o.aeads, o.tried = append(o.aeads, aead), append(o.tried, fmt.Sprintf("%x", id))
	}
	if len(o.aeads) == 0 {
		return nil, fmt.Errorf("no key is there to open it with: %w", ErrSealed)
	}
	o.r = bufio.NewReaderSize(r, sealChunk+o.aeads[0].Overhead())
	return o, nil
}

type opener struct {
	r     *bufio.Reader
	aeads []cipher.AEAD // of the secrets; after the first chunk the one that opened it
	tried []string      // SecretID of each, in hex
	named string        // what the file says of its secret
	plain []byte        // verified, not given yet
	chunk uint64
	done  bool
}

func (o *opener) Read(p []byte) (int, error) {
	for len(o.plain) == 0 {
		if o.done {
			return 0, io.EOF
		}
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.plain)
	o.plain = o.plain[n:]
	return n, nil
}

func (o *opener) next() error {
	sealed := make([]byte, sealChunk+o.aeads[0].Overhead())
	n, err := io.ReadFull(o.r, sealed)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if _, err := o.r.Peek(1); errors.Is(err, io.EOF) {
		o.done = true
	} else if err != nil {
		return err
	}
	for _, aead := range o.aeads {
		o.plain, err = aead.Open(nil, sealNonce(o.chunk, o.done), sealed[:n], nil)
		if err == nil {
			o.aeads = []cipher.AEAD{aead}
			o.chunk++
			return nil
		}
	}
	o.done = false
	if o.chunk == 0 {
		return fmt.Errorf("it names the key %s, and was tried with %s: %w", o.named, strings.Join(o.tried, ", "), ErrSealed)
	}
	return fmt.Errorf("chunk %d: %w", o.chunk, ErrSealed)
}

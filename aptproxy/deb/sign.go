package deb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// ErrSignature says that no key of the keyring vouches for a Release.
var ErrSignature = errors.New("no valid signature by a key of the keyring")

// Keyring are the keys that may sign a repository. It is immutable.
type Keyring struct{ keys openpgp.EntityList }

// ReadKeyring reads keys, armored (.asc) or not (.gpg), one after the other.
func ReadKeyring(data []byte) (*Keyring, error) {
	var keys openpgp.EntityList
	var err error
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) {
		keys, err = openpgp.ReadArmoredKeyRing(bytes.NewReader(data))
	} else {
		keys, err = openpgp.ReadKeyRing(bytes.NewReader(data))
	}
	if err != nil {
		return nil, fmt.Errorf("read the keyring: %w", err)
	}
	if len(keys) == 0 {
		return nil, errors.New("read the keyring: it has no key")
	}
	return &Keyring{keys}, nil
}

// Join gives a keyring with the keys of all.
func Join(rings ...*Keyring) *Keyring {
	all := &Keyring{}
	for _, r := range rings {
		all.keys = append(all.keys, r.keys...)
	}
	return all
}

// Inline verifies a clear-signed file (InRelease) and gives the text that was
// signed. Text before or after the signed part is an error: it would be read
// by a client that is less strict. Without a keyring (nil) nothing is verified.
// now is the time at which keys must not have expired.
func (k *Keyring) Inline(data []byte, now time.Time) ([]byte, error) {
	block, rest := clearsign.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%w: it is not a clear-signed message", ErrFormat)
	}
	if !bytes.HasPrefix(data, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: there is text outside of the signed message", ErrFormat)
	}
	if k == nil {
		return block.Plaintext, nil
	}
	signature, err := io.ReadAll(block.ArmoredSignature.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := k.verify(block.Bytes, signature, now); err != nil {
		return nil, err
	}
	return block.Plaintext, nil
}

// Detached verifies a file (Release) and its signature (Release.gpg).
func (k *Keyring) Detached(data, signature []byte, now time.Time) error {
	if k == nil {
		return nil
	}
	if block, err := armor.Decode(bytes.NewReader(signature)); err == nil {
		if signature, err = io.ReadAll(block.Body); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
	}
	return k.verify(data, signature, now)
}

// verify wants one valid signature among several: repositories sign with an
// old and a new key while they change. The library stops at the first
// signature of a known key, so each is tried alone.
func (k *Keyring) verify(data, signatures []byte, now time.Time) error {
	config := &packet.Config{Time: func() time.Time { return now }}
	failed := error(nil)
	for _, one := range splitPackets(signatures) {
		_, err := openpgp.CheckDetachedSignature(k.keys, bytes.NewReader(data), bytes.NewReader(one), config)
		if err == nil {
			return nil
		}
		failed = err
	}
	if failed == nil {
		return fmt.Errorf("%w: there is no signature", ErrSignature)
	}
	return fmt.Errorf("%w: %w", ErrSignature, failed)
}

// splitPackets cuts OpenPGP data into its packets (RFC 9580 §4.2). What it
// can't cut stays in one piece, for the library to refuse.
func splitPackets(data []byte) (list [][]byte) {
	for len(data) > 0 && len(list) < 32 {
		r := bytes.NewReader(data)
		op := packet.NewOpaqueReader(r)
		p, err := op.Next()
		if err != nil {
			return append(list, data)
		}
		var one bytes.Buffer
		if err := p.Serialize(&one); err != nil {
			return append(list, data)
		}
		list = append(list, one.Bytes())
		used := len(data) - r.Len()
		if used <= 0 {
			return list
		}
		data = data[used:]
	}
	return list
}

// NoKeys is a keyring that vouches for nothing.
func NoKeys() *Keyring { return &Keyring{} }

package deb

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Signer is a key that signs Release files. It is immutable.
type Signer struct{ key *openpgp.Entity }

// signerBits are the bits of a new RSA key: what every gpgv since Debian 8 and
// every policy of apt accepts.
const signerBits = 3072

// NewSigner makes a key, which never expires. name is what people see of it.
func NewSigner(name string, now time.Time) (*Signer, error) {
	key, err := openpgp.NewEntity(name, "", "", signerConfig(now))
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	return &Signer{key}, nil
}

func signerConfig(now time.Time) *packet.Config {
	return &packet.Config{
		Algorithm: packet.PubKeyAlgoRSA, RSABits: signerBits, DefaultHash: crypto.SHA512,
		Time: func() time.Time { return now },
	}
}

// ReadSigner reads what Private wrote, or what gpg --export-secret-keys --armor
// did for a key without a passphrase.
func ReadSigner(data []byte) (*Signer, error) {
	keys, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read the signing key: %w", err)
	}
	if len(keys) != 1 || keys[0].PrivateKey == nil {
		return nil, errors.New("read the signing key: it wants one private key, armored")
	}
	if keys[0].PrivateKey.Encrypted {
		return nil, errors.New("read the signing key: it has a passphrase, and nobody is there to type it")
	}
	return &Signer{keys[0]}, nil
}

// Private is the key itself, armored: a secret.
func (s *Signer) Private() ([]byte, error) {
	return armored(openpgp.PrivateKeyType, func(w *bytes.Buffer) error { return s.key.SerializePrivate(w, nil) })
}

// Public is what clients need (signed-by), armored.
func (s *Signer) Public() ([]byte, error) {
	return armored(openpgp.PublicKeyType, func(w *bytes.Buffer) error { return s.key.Serialize(w) })
}

func armored(kind string, serialize func(*bytes.Buffer) error) ([]byte, error) {
	var raw, out bytes.Buffer
	if err := serialize(&raw); err != nil {
		return nil, err
	}
	w, err := armor.Encode(&out, kind, nil)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw.Bytes()); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// Sign gives the InRelease and the Release.gpg of a Release's text.
func (s *Signer) Sign(text []byte, now time.Time) (inline, detached []byte, err error) {
	config := signerConfig(now)
	var in, apart bytes.Buffer
	w, err := clearsign.Encode(&in, s.key.PrivateKey, config)
	if err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	if _, err := w.Write(text); err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	in.WriteByte('\n')
	if err := openpgp.ArmoredDetachSign(&apart, s.key, bytes.NewReader(text), config); err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	apart.WriteByte('\n')
	return in.Bytes(), apart.Bytes(), nil
}

// Undated is a Release's text without its Valid-Until: what a frozen one says.
func Undated(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		name, _, isField := bytes.Cut(line, []byte(":"))
		if isField && bytes.EqualFold(name, []byte("Valid-Until")) {
			continue
		}
		out = append(out, line...)
	}
	return out
}

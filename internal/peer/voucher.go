package peer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
)

// A bare node knows one authority, by the fingerprint in its token. While the
// cluster goes from one to the next it may meet a server with a certificate of
// the other one. So each authority signs the whole list: whose key is known may
// issue any certificate, and can as well say whom else to believe.

// voucherType is the PEM block of such a signature: ECDSA, ASN.1, over
// voucherDigest.
const voucherType = "HOLDFAST VOUCHER"

// voucherDigest begins with words, so that what is signed is never a certificate.
func voucherDigest(cas []*x509.Certificate) []byte {
	hash := sha256.New()
	hash.Write([]byte("holdfast: these authorities are those of one cluster\n"))
	for _, cert := range cas {
		hash.Write(cert.Raw)
	}
	return hash.Sum(nil)
}

// vouched is the list with the signatures of those whose keys are in dir; the
// list alone while it has one.
func (a *authority) vouched(dir string) ([]byte, error) {
	out := bytes.Clone(a.pem)
	if len(a.cas) == 1 {
		return out, nil
	}
	for _, name := range []string{fileCAKey, fileNextKey} {
		keyPEM, err := readSecret(dir, name, "")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		key, err := parseKey(keyPEM)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		signature, err := key.Sign(rand.Reader, voucherDigest(a.cas), crypto.SHA256)
		if err != nil {
			return nil, err
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: voucherType, Bytes: signature})...)
	}
	return out, nil
}

// parseVouched reads what vouched wrote, of whoever says so. It returns the
// authority with the fingerprint, and all others if that one vouches for them.
func parseVouched(data []byte, fingerprint string) ([]*x509.Certificate, error) {
	var bundle []byte
	var signatures [][]byte
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != voucherType {
			bundle = append(bundle, pem.EncodeToMemory(block)...)
		} else if signatures = append(signatures, block.Bytes); len(signatures) > maxAuthorities {
			return nil, fmt.Errorf("holds more than %d vouchers", maxAuthorities)
		}
	}
	cas, err := parseBundle(bundle)
	if err != nil {
		return nil, err
	}
	known := named(cas, fingerprint)
	if known == nil {
		return nil, fmt.Errorf("%s: none has the fingerprint %.16s", nameAll(cas), fingerprint)
	}
	key, ok := known.PublicKey.(*ecdsa.PublicKey)
	for _, signature := range signatures {
		if ok && ecdsa.VerifyASN1(key, voucherDigest(cas), signature) {
			return cas, nil
		}
	}
	return []*x509.Certificate{known}, nil
}

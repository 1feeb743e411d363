package dns

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/miekg/dns"

	"holdfast/cluster"
)

// transferSection is `dns: transfer:`.
type transferSection struct {
	Allow  []string              `yaml:"allow"`
	Notify []string              `yaml:"notify"`
	Keys   map[string]keySection `yaml:"keys"`
}

// keySection is a TSIG key (RFC 8945).
type keySection struct {
	Algorithm string            `yaml:"algorithm"`
	Secret    cluster.SecretRef `yaml:"secret"`
}

// transferSettings is who may have whole zones, and who is told of changes.
type transferSettings struct {
	allow  []netip.Prefix // empty: any address, if there are keys
	notify []secondary
	keys   map[string]tsigKey // by name, lower case, with a trailing dot
}

// secondary is told of new serials.
type secondary struct {
	addr netip.AddrPort
	key  string // that NOTIFY is signed with; "" none
}

// tsigKey is a shared secret; it is read when the file is taken over.
type tsigKey struct {
	algorithm string // as on the wire
	file      string
	secret    string // base64
}

// tsigAlgorithms are those that RFC 8945 §6 wants, without the broken ones.
func tsigAlgorithms() map[string]string {
	return map[string]string{
		"": dns.HmacSHA256, "hmac-sha256": dns.HmacSHA256, "hmac-sha384": dns.HmacSHA384, "hmac-sha512": dns.HmacSHA512,
	}
}

func (d *decoder) transfer(raw transferSection) transferSettings {
	set := transferSettings{keys: map[string]tsigKey{}}
	for _, name := range sortedKeys(raw.Keys) {
		at := fmt.Sprintf("transfer.keys[%q]", name)
		n, err := wireName(name)
		algorithm, known := tsigAlgorithms()[strings.ToLower(raw.Keys[name].Algorithm)]
		switch {
		case err != nil || n == root:
			d.errorf(at, "%q is no key's name: write one such as backup.example", name)
		case !known:
			d.errorf(at+".algorithm", "%q is not known: hmac-sha256 (unless said), hmac-sha384 or hmac-sha512", raw.Keys[name].Algorithm)
		case raw.Keys[name].Secret.File == "":
			d.errorf(at, "has no secret: {file: PATH}, in base64 as tsig-keygen and keymgr write it")
		default:
			set.keys[n.String()] = tsigKey{algorithm: algorithm, file: raw.Keys[name].Secret.File}
		}
	}
	for i, s := range raw.Allow {
		p, err := netip.ParsePrefix(s)
		if addr, notPrefix := netip.ParseAddr(s); notPrefix == nil {
			p, err = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
		}
		if err != nil || p != p.Masked() {
			d.errorf(fmt.Sprintf("transfer.allow[%d]", i), "%q is no address and no network: write 10.1.0.50 or 10.1.0.0/24", s)
			continue
		}
		set.allow = append(set.allow, p)
	}
	for i, s := range raw.Notify {
		at := fmt.Sprintf("transfer.notify[%d]", i)
		addr, key, signed := strings.Cut(s, " ")
		to, err := cluster.ParseAddrPort(addr, Port)
		switch {
		case err != nil:
			d.errorf(at, "%v; a key's name may follow", err)
			continue
		case signed && !has(set.keys, strings.ToLower(dns.Fqdn(strings.TrimSpace(key)))):
			d.errorf(at, "%q is no key of transfer.keys", key)
			continue
		case signed:
			key = strings.ToLower(dns.Fqdn(strings.TrimSpace(key)))
		}
		set.notify = append(set.notify, secondary{addr: to, key: key})
	}
	return set
}

// loadKeys reads the secrets of the keys.
func (t *transferSettings) loadKeys() error {
	for name, key := range t.keys {
		text, err := os.ReadFile(key.file)
		if err != nil {
			return fmt.Errorf("dns: secret of TSIG key %s: %w", name, err)
		}
		key.secret = strings.TrimSpace(string(text))
		if b, err := base64.StdEncoding.DecodeString(key.secret); err != nil || len(b) < 16 {
			return fmt.Errorf("dns: secret of TSIG key %s: %s does not hold 16 bytes or more in base64", name, key.file)
		}
		t.keys[name] = key
	}
	return nil
}

// any tells whether anybody may have a zone at all.
func (t *transferSettings) any() bool { return len(t.allow)+len(t.keys) > 0 }

// allows tells whether a client may have whole zones: from an address that is
// allowed, and signed where there are keys.
func (t *transferSettings) allows(client netip.Addr, signed bool) bool {
	if !t.any() || len(t.keys) > 0 && !signed {
		return false
	}
	return len(t.allow) == 0 || contains(t.allow, client)
}

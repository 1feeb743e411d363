package logrelay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// addressList is one address, or a list of them.
type addressList []string

// UnmarshalYAML reads a text or a list of texts.
func (l *addressList) UnmarshalYAML(read func(any) error) error {
	var one string
	if read(&one) == nil {
		*l = addressList{one}
		return nil
	}
	return read((*[]string)(l))
}

// forwardSection is one target as it stands in the file.
type forwardSection struct {
	RELP    addressList `yaml:"relp"`
	RELPTLS addressList `yaml:"relp_tls"`
	TCP     addressList `yaml:"tcp"`
	TLS     addressList `yaml:"tls"`
	Format  string      `yaml:"format"`
	CA      string      `yaml:"ca"`
	Name    string      `yaml:"name"`
	Cert    string      `yaml:"cert"`
	Key     secretFile  `yaml:"key"`

	BacklogMiB int    `yaml:"backlog_mib"`
	Policy     string `yaml:"backlog_policy"`
}

// secretFile names a file: secrets don't stand in the cluster file.
type secretFile struct {
	File string `yaml:"file"`
}

// target is where lines are forwarded.
type target struct {
	name      string
	via       uint8    // viaRELP, viaRELPTLS, viaTCP or viaTLS
	addresses []string // the first that takes lines gets them
	format    string
	trust     foreign
	backlog   backlog
}

// Formats of forwarded lines.
const (
	format3164 = "rfc3164" // RFC 3164 with a precise time
	format5424 = "rfc5424"
)

func (t target) relp() bool   { return t.via == viaRELP || t.via == viaRELPTLS }
func (t target) secure() bool { return t.via == viaTLS || t.via == viaRELPTLS }

// foreign is the trust in a target that is no server of our cluster. Its files
// are read at each connection: who renews them needs no restart.
type foreign struct {
	ca        string // file of its authority's certificates; "": a server of our cluster
	name      string // in its certificate; "": the address's host
	cert, key string // files of what we show; "": nothing
}

// config is for the connection to an address.
func (f foreign) config(address string) (*tls.Config, error) {
	text, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), ServerName: f.name}
	if !c.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate in PEM", f.ca)
	}
	if c.ServerName == "" {
		if c.ServerName, _, err = net.SplitHostPort(address); err != nil {
			return nil, err
		}
	}
	if f.cert == "" {
		return c, nil
	}
	own, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", f.cert, f.key, err)
	}
	c.Certificates = []tls.Certificate{own}
	return c, nil
}

// maxAddresses of one target.
const maxAddresses = 16

func (d *decoder) forward(raw map[string]forwardSection, set *settings) {
	for name, f := range raw {
		key := "forward." + name
		if name == "files" || name == "replica" || len(name) > 32 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			d.errorf(key, "%q can't name a target: write 1 to 32 of a-z, 0-9 and '-', and neither files nor replica", name)
		}
		if t, ok := d.target(key, f); ok {
			t.name = name
			set.forward = append(set.forward, t)
		}
	}
	slices.SortFunc(set.forward, func(a, b target) int { return strings.Compare(a.name, b.name) })
}

// target reads where one goes.
func (d *decoder) target(key string, f forwardSection) (t target, ok bool) {
	said := 0
	for via, list := range map[uint8]addressList{viaRELP: f.RELP, viaRELPTLS: f.RELPTLS, viaTCP: f.TCP, viaTLS: f.TLS} {
		if len(list) > 0 {
			said++
			t.via, t.addresses = via, list
		}
	}
	if said != 1 {
		d.errorf(key, "%d of relp, relp_tls, tcp and tls are there: want one, HOST:PORT or a list of them", said)
		return t, false
	}
	if len(t.addresses) > maxAddresses {
		d.errorf(key, "%d addresses: want %d at most", len(t.addresses), maxAddresses)
	}
	for _, address := range t.addresses {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
			d.errorf(key, "%q is no HOST:PORT", address)
		}
	}
	if t.format = f.Format; t.format == "" {
		t.format = format3164
	} else if t.format != format3164 && t.format != format5424 {
		d.errorf(key+".format", "%q is no format: want %s or %s", t.format, format3164, format5424)
	}
	t.backlog = d.backlog(key, f)
	t.trust = foreign{ca: f.CA, name: f.Name, cert: f.Cert, key: f.Key.File}
	if err := t.trust.validate(t.secure()); err != nil {
		d.errorf(key, "%v", err)
	}
	return t, true
}

func (f foreign) validate(secure bool) error {
	switch {
	case f == (foreign{}):
		return nil
	case !secure:
		return errors.New("ca, name, cert and key are for relp_tls and tls")
	case f.ca == "":
		return errors.New("name, cert and key are for a target outside the cluster: want ca, the file of its authority, too")
	case (f.cert == "") != (f.key == ""):
		return errors.New("one of cert and key is there: want both or none")
	}
	for _, path := range []string{f.ca, f.cert, f.key} {
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("%q is no absolute path", path)
		}
	}
	return nil
}

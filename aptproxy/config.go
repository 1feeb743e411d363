package aptproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/time/rate"

	"holdfast/aptproxy/deb"
	"holdfast/cluster"
)

// Section is the top-level key of the cluster file that ValidateSection reads.
const Section = "apt"

// Port is where clients of apt-cacher-ng ask.
const Port = 3142

// Bounds and defaults of the section.
const (
	defaultKeep    = 3
	maxKeep        = 100
	defaultReserve = 1 << 30 // bytes that stay free on the disk
	debianKeyring  = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// section is the `apt:` section as it stands in the file.
type section struct {
	Listen       []string                     `yaml:"listen"`
	Allow        []string                     `yaml:"allow"`
	Max          string                       `yaml:"max"`
	Reserve      string                       `yaml:"reserve"`
	Repositories map[string]repositorySection `yaml:"repositories"`
	Others       string                       `yaml:"others"`
	Origins      []string                     `yaml:"origins"`
	Connect      []string                     `yaml:"connect"`
	Proxy        string                       `yaml:"proxy"`
	SignKey      cluster.SecretRef            `yaml:"sign_key"`
	AccessLog    bool                         `yaml:"access_log"`
	Limits       []limitSection               `yaml:"limits"`
	FetchRate    string                       `yaml:"fetch_rate"`
}

type limitSection struct {
	Networks []string `yaml:"networks"`
	Rate     string   `yaml:"rate"`
}

type repositorySection struct {
	Mirrors []string `yaml:"mirrors"`
	Aliases []string `yaml:"aliases"`
	Keyring []string `yaml:"keyring"`
	Signed  *bool    `yaml:"signed"`
	Keep    int      `yaml:"keep"`
	Max     string   `yaml:"max"`
}

// settings is the section, understood.
type settings struct {
	listen       []netip.AddrPort
	allow        []netip.Prefix // who is served
	max, reserve int64
	repositories []repositorySettings // by name
	others       bool                 // hosts that are no repository's are served, too
	private      []netip.Prefix       // addresses of our own networks that may be asked nevertheless
	cluster      []netip.Prefix       // the cluster's networks
	connect      []string             // host:port
	proxy        *url.URL
	accessLog    bool
	limits       []limit       // of clients, the first that fits
	fetch        *rate.Limiter // of what comes from mirrors; nil: as fast as it can
	signKey      string        // a file with the key that signs frozen suites anew; "" none
}

type repositorySettings struct {
	name    string
	mirrors []target
	aliases []target
	keyring []string // files; empty: the signature is not verified
	keep    int      // generations of each suite
	max     int64    // bytes of the store; 0: as many as there are
}

// debian are the repositories of a file that names none.
func debian() map[string]repositorySection {
	return map[string]repositorySection{
		"debian":          {Mirrors: []string{"http://deb.debian.org/debian"}, Aliases: []string{"http://ftp.debian.org/debian", "http://httpredir.debian.org/debian"}},
		"debian-security": {Mirrors: []string{"http://deb.debian.org/debian-security"}, Aliases: []string{"http://security.debian.org/debian-security", "http://security.debian.org"}},
	}
}

// ValidateSection checks the `apt:` section of a cluster file; a file without
// one is in order. The error is cluster.Errors.
func ValidateSection(file *cluster.File, s cluster.Section) error {
	_, err := decode(file, s)
	return err
}

// decode reads the section with its defaults; it reports all mistakes at once.
func decode(file *cluster.File, s cluster.Section) (settings, error) {
	raw := section{Others: "allow"}
	if !s.IsZero() {
		if err := s.Decode(&raw); err != nil {
			return settings{}, err
		}
	}
	if len(raw.Repositories) == 0 {
		raw.Repositories = debian()
	}
	d := decoder{section: s}
	set := settings{
		listen:  d.listen(raw.Listen),
		allow:   append(members(file), d.prefixes("allow", raw.Allow)...),
		max:     d.size("max", raw.Max, 0),
		reserve: d.size("reserve", raw.Reserve, defaultReserve),
		private: d.prefixes("origins", raw.Origins),
		others:  raw.Others == "allow",
		signKey: raw.SignKey.File,
		fetch:   newLimiter(d.size("fetch_rate", raw.FetchRate, 0)),
		limits:  d.limits(raw.Limits),

		accessLog: raw.AccessLog,
		connect:   d.hostPorts("connect", raw.Connect),
	}
	for _, n := range file.Networks {
		set.cluster = append(set.cluster, n.Prefix)
	}
	if raw.Others != "allow" && raw.Others != "refuse" {
		d.errorf("others", "%q is neither allow nor refuse", raw.Others)
	}
	if raw.Proxy != "" {
		u, err := url.Parse(raw.Proxy)
		if err != nil || u.Scheme != "http" || u.Host == "" {
			d.errorf("proxy", "%q is no proxy such as http://proxy.example.com:3128", clip(raw.Proxy))
		}
		set.proxy = u
	}
	for name, r := range raw.Repositories {
		set.repositories = append(set.repositories, d.repository(name, r))
	}
	slices.SortFunc(set.repositories, func(a, b repositorySettings) int { return strings.Compare(a.name, b.name) })
	d.distinct(set.repositories)
	if len(d.errs) > 0 {
		return settings{}, d.errs
	}
	return set, nil
}

// members are the networks whose machines are the cluster's.
func members(file *cluster.File) []netip.Prefix {
	list := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	for _, n := range file.Networks {
		list = append(list, n.Prefix)
	}
	return list
}

// decoder collects the mistakes of a section.
type decoder struct {
	section cluster.Section
	errs    cluster.Errors
}

func (d *decoder) errorf(key, format string, args ...any) {
	d.errs = append(d.errs, d.section.Errorf(key, format, args...))
}

func (d *decoder) listen(raw []string) []netip.AddrPort {
	list, mistakes := d.section.AddrPorts("listen", raw, Port)
	d.errs = append(d.errs, mistakes...)
	return list
}

func (d *decoder) prefixes(key string, raw []string) []netip.Prefix {
	list, mistakes := d.section.Prefixes(key, raw)
	d.errs = append(d.errs, mistakes...)
	return list
}

// limits reads the classes of clients that get no more than a rate together.
func (d *decoder) limits(raw []limitSection) (list []limit) {
	for i, one := range raw {
		key := fmt.Sprintf("limits[%d]", i)
		bytes := d.size(key+".rate", one.Rate, 0)
		if bytes == 0 || len(one.Networks) == 0 {
			d.errorf(key, "a limit has networks and a rate: {networks: [10.2.0.0/16], rate: 50M}")
			continue
		}
		list = append(list, limit{d.prefixes(key+".networks", one.Networks), newLimiter(bytes)})
	}
	return list
}

// size reads bytes with a binary unit: 200G.
func (d *decoder) size(key, text string, unless int64) int64 {
	if text == "" {
		return unless
	}
	n, err := ParseSize(text)
	if err != nil {
		d.errorf(key, "%v", err)
	}
	return n
}

// ParseSize reads bytes with a binary unit (K, M, G, T), such as 200G.
func ParseSize(text string) (int64, error) {
	number, shift := text, 0
	if i := strings.IndexByte("KMGT", text[max(0, len(text)-1)]); text != "" && i >= 0 {
		number, shift = text[:len(text)-1], 10*(i+1)
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > (1<<62)>>shift {
		return 0, fmt.Errorf("%q is no size such as 200G (K, M, G and T are binary)", clip(text))
	}
	return n << shift, nil
}

func (d *decoder) hostPorts(key string, raw []string) []string {
	for i, text := range raw {
		host, port, err := net.SplitHostPort(text)
		if err == nil {
			_, err = cleanHost(net.JoinHostPort(host, port), false)
		}
		if err != nil || host == "" {
			d.errorf(fmt.Sprintf("%s[%d]", key, i), "%q is no HOST:PORT such as download.example.com:443", clip(text))
		}
	}
	return raw
}

func (d *decoder) repository(name string, r repositorySection) repositorySettings {
	key := "repositories." + name
	if !validHost(name) || strings.Contains(name, ".") {
		d.errorf(key, "%q is no name of a repository: lower-case letters, digits and hyphens", clip(name))
	}
	set := repositorySettings{name: name, keyring: r.Keyring, keep: r.Keep, max: d.size(key+".max", r.Max, 0)}
	if len(r.Mirrors) == 0 {
		d.errorf(key, "a repository has mirrors: [http://deb.debian.org/debian]")
	}
	set.mirrors = d.urls(key+".mirrors", r.Mirrors)
	set.aliases = append(d.urls(key+".aliases", r.Aliases), set.mirrors...)
	if r.Keep == 0 {
		set.keep = defaultKeep
	}
	if set.keep < 1 || set.keep > maxKeep {
		d.errorf(key+".keep", "%d is out of range: 1 to %d", r.Keep, maxKeep)
	}
	signed := r.Signed == nil || *r.Signed
	switch {
	case !signed && len(r.Keyring) > 0:
		d.errorf(key+".signed", "is false, and there is a keyring: drop one of them")
	case signed && len(r.Keyring) == 0:
		set.keyring = []string{debianKeyring}
	}
	return set
}

func (d *decoder) urls(key string, raw []string) (list []target) {
	for i, text := range raw {
		u, err := url.Parse(text)
		var t target
		if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "") {
			err = errors.New("no http or https, or a query")
		}
		if err == nil {
			t, err = parseTarget(u)
		}
		if err != nil {
			d.errorf(fmt.Sprintf("%s[%d]", key, i), "%q is no URL such as http://deb.debian.org/debian", clip(text))
			continue
		}
		t.path = strings.TrimSuffix(t.path, "/")
		list = append(list, t)
	}
	return list
}

// distinct refuses a URL that stands for two repositories.
func (d *decoder) distinct(list []repositorySettings) {
	owner := map[target]string{}
	for _, r := range list {
		for _, t := range r.aliases {
			t.https = false
			if other := owner[t]; other != "" && other != r.name {
				d.errorf("repositories."+r.name, "%s%s belongs to repository %s already", t.host, t.path, other)
			}
			owner[t] = r.name
		}
	}
}

// loadKeyring reads the keys of a repository; nil when it has none.
func loadKeyring(files []string) (*deb.Keyring, error) {
	var rings []*deb.Keyring
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		ring, err := deb.ReadKeyring(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		rings = append(rings, ring)
	}
	if len(rings) == 0 {
		return nil, nil
	}
	return deb.Join(rings...), nil
}

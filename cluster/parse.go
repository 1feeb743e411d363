package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Schema is the number of the cluster file's schema that this program reads.
const Schema = 1

// SectionValidator checks the section of one service. It returns an Error,
// Errors, errors joined, or any error, which then stands at the section's key.
// When the file has mistakes, the File may lack what could not be read, or have
// a stand-in for it (the documentation address 192.0.2.1, port 1), and Main is
// never nil.
type SectionValidator func(*File, Section) error

// Parse reads a cluster file. sections names the top-level keys that belong
// to services; every other key that cluster does not know is an error. A
// validator is called when the file has its key, also for a key of cluster's
// own such as "services", once that was read; nil validates nothing. All
// mistakes are returned at once, as Errors in the order of the file.
func Parse(path string, data []byte, sections map[string]SectionValidator) (*File, error) {
	return parse(&problems{file: path}, data, sections)
}

// Load reads and parses the file at path.
func Load(path string, sections map[string]SectionValidator) (*File, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("cluster file: %w", err)
	}
	return Parse(path, data, sections)
}

// readFile reads a file, but never much more than a cluster file may have.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	return data, err // which names the file
}

func parse(p *problems, data []byte, sections map[string]SectionValidator) (*File, error) {
	sum := sha256.Sum256(data)
	f := &File{Path: p.file, Sum: hex.EncodeToString(sum[:]), sections: map[string]*value{}}
	root := parseTree(data, p)
	if root == nil {
		return nil, p.err()
	}
	if root.kind != object {
		p.at(position{1, 1}, "", "%s where the cluster file's keys belong, as in schema: %d", root.quoted(), Schema)
		return nil, p.err()
	}
	l := newLoader(p, f, root)
	if !l.schema() {
		return nil, p.err()
	}
	l.secrets(root)
	l.top(sections)
	l.validate(sections)
	if err := p.err(); err != nil {
		return nil, err
	}
	return f, nil
}

// loader reads the keys that cluster itself knows.
type loader struct {
	*problems
	f    *File
	root *mapping

	networks  map[string]*Network
	roleNames []string
	inRole    map[string][]string // node names

	names     claims // nodes
	hostnames claims // everything that has a name in the cluster's zone
	addresses claims
	macs      claims
	vipNames  claims
	vrids     map[string]claims // by network

	// What could not be read. References to it are not called unknown.
	lostNetworks, lostRoles, lostNodes bool
	lostAddresses                      map[string]bool // of some node, by network
}

func newLoader(p *problems, f *File, root *value) *loader {
	return &loader{
		problems: p, f: f, root: &mapping{problems: p, v: root},
		networks:  map[string]*Network{},
		inRole:    map[string][]string{},
		names:     newClaims("node", "nodes", "name each node once"),
		hostnames: newClaims("host name", "host names", "every name of the domain belongs to one machine"),
		addresses: newClaims("address", "addresses", "give a free one"),
		macs:      newClaims("hardware address", "hardware addresses", "give each interface its own"),
		vipNames:  newClaims("VIP", "VIPs", "name each VIP once"),
		vrids:     map[string]claims{},

		lostAddresses: map[string]bool{},
	}
}

// schema reads the schema number; with another schema nothing else is read.
func (l *loader) schema() bool {
	v := l.root.get("schema")
	if v == nil {
		l.at(position{1, 1}, "", "schema is missing: this program reads schema %d; begin the file with schema: %d", Schema, Schema)
		return true
	}
	n, ok := l.integer(v, 0, 1<<31, "")
	if ok && n != Schema {
		l.at(v.pos, v.path, "%d: this program reads schema %d; install the release that reads %d, or write the file for schema %d", n, Schema, n, Schema)
		return false
	}
	l.f.Schema = Schema
	return true
}

func (l *loader) top(sections map[string]SectionValidator) {
	l.identity()
	l.readRoles(l.root.need("roles", "roles: {service: {voters: 3}}"))
	l.readNetworks(l.root.need("networks", "networks: {administration: {prefix: 10.1.0.0/24}}"))
	l.readNodes(l.root.need("nodes", `nodes: {"fbservice[1-3]": {role: service, addresses: {administration: "10.1.0.[1-3]"}}}`))
	l.index()
	l.checkServers()
	defaults := l.vipDefaults(l.root.get("vip_defaults"))
	l.readVIPs(l.root.get("vips"), defaults)
	l.readServices(l.root.get("services"))
	own := slices.Clone(l.root.known)
	for name := range sections {
		if !slices.Contains(own, name) {
			l.root.known = append(l.root.known, name)
		}
	}
	slices.Sort(l.root.known[len(own):])
	for _, e := range l.root.v.entries {
		if _, ok := sections[e.key]; ok && !slices.Contains(own, e.key) {
			l.f.sections[e.key] = e.value
			l.f.sectionNames = append(l.f.sectionNames, e.key)
		}
	}
	l.root.done()
}

// identity reads the names of the cluster.
func (l *loader) identity() {
	f := l.f
	if v := l.root.need("cluster", "the cluster's name, such as cluster: foobar"); v != nil {
		if s, ok := l.text(v); ok {
			l.nameError(v.pos, v.path, label(s))
			f.Name = s
		}
	}
	if v := l.root.need("domain", "the cluster's DNS zone, such as domain: hpc.example.com"); v != nil {
		if s, ok := l.text(v); ok {
			l.nameError(v.pos, v.path, domainName(s))
			f.Domain = s
		}
	}
	f.VirtualDomain = "virtual"
	virtual := l.root.get("virtual_domain")
	if s, ok := l.text(virtual); ok {
		l.nameError(virtual.pos, virtual.path, domainName(s))
		f.VirtualDomain = s
	}
	at := virtual
	if at == nil {
		at = l.root.v.child("domain")
	}
	switch {
	case f.Domain == "" || at == nil:
	case within(f.VirtualDomain, f.Domain):
		l.at(at.pos, at.path, "the virtual domain %s is the domain %s or lies inside it; give it a name of its own, such as virtual", f.VirtualDomain, f.Domain)
	case within(f.Domain, f.VirtualDomain):
		l.at(at.pos, at.path, "the domain %s lies inside the virtual domain %s; give the virtual domain a name of its own, such as virtual", f.Domain, f.VirtualDomain)
	}
	naming, ok := l.mapping(l.root.get("naming"))
	if !ok {
		return
	}
	if v := naming.need("prefix", "the prefix of every node's name, such as prefix: fb"); v != nil {
		if s, ok := l.text(v); ok {
			l.nameError(v.pos, v.path, label(s))
			f.NamePrefix = s
		}
	}
	naming.done()
}

func (l *loader) nameError(pos position, path string, err error) {
	if err != nil {
		l.at(pos, path, "%v", err)
	}
}

// secrets refuses secrets that stand in the file, and keeps every other
// message from quoting them.
func (l *loader) secrets(v *value) {
	for _, e := range v.entries {
		scalar := e.value.kind == text || e.value.kind == number
		if scalar && isSecretKey(e.key) {
			l.at(e.pos, e.value.path, "a secret stands in the cluster file, which every node can read; put it into a file of mode 0600 and write %s: {file: /etc/holdfast/secrets/%s}", e.key, e.key)
			e.value.broken = true
			continue
		}
		l.secrets(e.value)
	}
	for _, item := range v.items {
		l.secrets(item)
	}
}

// isSecretKey tells keys whose value would be a secret.
func isSecretKey(key string) bool {
	key = strings.ToLower(strings.ReplaceAll(key, "-", "_"))
	for _, word := range []string{"password", "passphrase", "secret", "token", "key"} {
		if key == word || strings.HasSuffix(key, "_"+word) {
			return true
		}
	}
	return false
}

// index makes the File answer questions about its nodes.
func (l *loader) index() {
	f := l.f
	f.partial = l.lostNodes || l.lostRoles
	f.nodeAt = make(map[string]int, len(f.Nodes))
	for i := range f.Nodes {
		f.nodeAt[f.Nodes[i].Name] = i
	}
}

func (l *loader) validate(sections map[string]SectionValidator) {
	if len(l.list) > 0 {
		l.standIns()
	}
	for _, e := range l.root.v.entries {
		if validator := sections[e.key]; validator != nil {
			l.merge(e.pos, e.key, validator(l.f, Section{v: e.value, f: l.f}))
		}
	}
}

// standIns puts something in the place of what could not be read, so that
// validators, which see it, do not complain of its absence a second time. A
// file with mistakes reaches nobody else.
func (l *loader) standIns() {
	f := l.f
	if len(f.Networks) == 0 {
		f.Networks = []Network{{}}
	}
	main := f.Networks[0].Name
	for i := range f.Nodes {
		if !f.Nodes[i].Addresses[main].IsValid() {
			f.Nodes[i].Addresses[main] = netip.AddrFrom4([4]byte{192, 0, 2, 1}) // RFC 5737 §3
		}
	}
	for i := range f.Services {
		if f.Services[i].Port == 0 {
			f.Services[i].Port = 1
		}
	}
}

// addrStrings gives the text of addresses.
func addrStrings(addrs []netip.Addr) []string {
	list := make([]string, len(addrs))
	for i, a := range addrs {
		list[i] = a.String()
	}
	return list
}

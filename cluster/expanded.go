package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/goccy/go-yaml"
)

// Mapping is a mapping that keeps its order in YAML and JSON.
type Mapping[T any] []Named[T]

// Named is an entry of a Mapping.
type Named[T any] struct {
	Name  string
	Value T
}

// Get finds an entry by name.
func (m Mapping[T]) Get(name string) (T, bool) {
	for i := range m {
		if m[i].Name == name {
			return m[i].Value, true
		}
	}
	var zero T
	return zero, false
}

// widen copies the mapping into one of any values.
func (m Mapping[T]) widen() Mapping[any] {
	wide := make(Mapping[any], len(m))
	for i := range m {
		wide[i] = Named[any]{m[i].Name, m[i].Value}
	}
	return wide
}

// MarshalJSON writes an object whose keys stand in the mapping's order.
func (m Mapping[T]) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i := range m {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(m[i].Name)
		if err != nil {
			return nil, err
		}
		item, err := json.Marshal(m[i].Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m[i].Name, err)
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(item)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// MarshalYAML gives the mapping to the YAML library, in its order.
func (m Mapping[T]) MarshalYAML() (any, error) {
	slice := make(yaml.MapSlice, len(m))
	for i := range m {
		slice[i] = yaml.MapItem{Key: m[i].Name, Value: m[i].Value}
	}
	return slice, nil
}

// Expanded is the cluster file with everything said: node sets one by one,
// defaults filled in, patterns applied. Its YAML form is a cluster file of the
// same meaning; its JSON form adds what follows from it.
type Expanded struct {
	Path          string // JSON only
	Sum           string // hex SHA-256 of the file's bytes; JSON only
	Schema        int
	Cluster       string
	Domain        string
	VirtualDomain string
	NamePrefix    string // "" none
	Networks      Mapping[ExpandedNetwork]
	Roles         Mapping[ExpandedRole]
	Nodes         Mapping[ExpandedNode]
	VIPs          Mapping[ExpandedVIP]
	Services      Mapping[ExpandedService]
	Sections      Mapping[any] // of the services, as the file has them; top-level keys of both forms
}

// ExpandedNetwork is a network.
type ExpandedNetwork struct {
	Prefix    string `yaml:"prefix" json:"prefix"`
	Hostname  string `yaml:"hostname,omitempty" json:"hostname,omitempty"`
	Interface string `yaml:"interface,omitempty" json:"interface,omitempty"`
	Gateway   string `yaml:"gateway,omitempty" json:"gateway,omitempty"`
}

// ExpandedRole is a role.
type ExpandedRole struct {
	Voters   int      `yaml:"voters,omitempty" json:"voters,omitempty"`
	Run      []string `yaml:"run,omitempty" json:"run,omitempty"`
	Agent    bool     `yaml:"agent" json:"agent"`
	Diskless bool     `yaml:"diskless,omitempty" json:"diskless,omitempty"`
}

// ExpandedNode is a node.
type ExpandedNode struct {
	Role      string          `yaml:"role" json:"role"`
	FQDN      string          `yaml:"-" json:"fqdn"`
	Addresses Mapping[string] `yaml:"addresses" json:"addresses"`
	Hostnames Mapping[string] `yaml:"hostnames,omitempty" json:"hostnames,omitempty"` // of the networks beside the main one
	MAC       Mapping[string] `yaml:"mac,omitempty" json:"mac,omitempty"`
	BMC       *ExpandedBMC    `yaml:"bmc,omitempty" json:"bmc,omitempty"`
	Services  []string        `yaml:"-" json:"services,omitempty"`
}

// ExpandedBMC is a node's management controller.
type ExpandedBMC struct {
	Address     string     `yaml:"address" json:"address"`
	Hostname    string     `yaml:"hostname,omitempty" json:"hostname,omitempty"`
	Credentials *SecretRef `yaml:"credentials,omitempty" json:"credentials,omitempty"`
}

// ExpandedVIP is a virtual IP address.
type ExpandedVIP struct {
	Network      string   `yaml:"network" json:"network"`
	Address      string   `yaml:"address" json:"address"`
	Hostname     string   `yaml:"hostname,omitempty" json:"hostname,omitempty"`
	VRID         int      `yaml:"vrid" json:"vrid"`
	Version      int      `yaml:"version" json:"version"`
	Advertise    string   `yaml:"advertise" json:"advertise"`
	PreemptDelay string   `yaml:"preempt_delay" json:"preempt_delay"`
	Prefer       string   `yaml:"prefer,omitempty" json:"prefer,omitempty"`
	Members      []string `yaml:"members" json:"members"`
	Track        []string `yaml:"track,omitempty" json:"track,omitempty"`
	VRRP         any      `yaml:"vrrp,omitempty" json:"vrrp,omitempty"` // as the file has it, with that of vip_defaults
}

// ExpandedService is a service.
type ExpandedService struct {
	On      []string `yaml:"on" json:"on"`
	Port    int      `yaml:"port" json:"port"`
	Tags    []string `yaml:"tags,omitempty" json:"tags,omitempty"`
	Address string   `yaml:"address,omitempty" json:"address,omitempty"`
	TTL     string   `yaml:"ttl,omitempty" json:"ttl,omitempty"`
	Check   any      `yaml:"check,omitempty" json:"check,omitempty"`
}

// Expanded gives the expanded truth of the file.
func (f *File) Expanded() *Expanded {
	e := &Expanded{
		Path: f.Path, Sum: f.Sum, Schema: f.Schema,
		Cluster: f.Name, Domain: f.Domain, VirtualDomain: f.VirtualDomain, NamePrefix: f.NamePrefix,
	}
	for i := range f.Networks {
		e.Networks = append(e.Networks, expandNetwork(&f.Networks[i]))
	}
	for _, r := range f.Roles {
		e.Roles = append(e.Roles, Named[ExpandedRole]{r.Name, ExpandedRole{Voters: r.Voters, Run: r.Run, Agent: r.Agent, Diskless: r.Diskless}})
	}
	on := map[string][]string{}
	for i := range f.Services {
		svc := &f.Services[i]
		e.Services = append(e.Services, expandService(svc))
		for _, node := range svc.On {
			on[node] = append(on[node], svc.Name)
		}
	}
	for i := range f.Nodes {
		n := f.expandNode(&f.Nodes[i])
		n.Value.Services = on[n.Name]
		e.Nodes = append(e.Nodes, n)
	}
	for i := range f.VIPs {
		e.VIPs = append(e.VIPs, expandVIP(&f.VIPs[i]))
	}
	for _, name := range f.sectionNames {
		e.Sections = append(e.Sections, Named[any]{name, f.sections[name].ordered()})
	}
	return e
}

func expandNetwork(n *Network) Named[ExpandedNetwork] {
	return Named[ExpandedNetwork]{n.Name, ExpandedNetwork{
		Prefix: n.Prefix.String(), Hostname: n.Hostname, Interface: n.Interface, Gateway: addrString(n.Gateway),
	}}
}

func (f *File) expandNode(n *Node) Named[ExpandedNode] {
	e := ExpandedNode{Role: n.Role, FQDN: n.Name + "." + f.Domain}
	for i := range f.Networks {
		network := f.Networks[i].Name
		if a, ok := n.Addresses[network]; ok {
			e.Addresses = append(e.Addresses, Named[string]{network, a.String()})
		}
		if name := n.Hostnames[network]; name != "" && i > 0 {
			e.Hostnames = append(e.Hostnames, Named[string]{network, name})
		}
		if mac := n.MAC[network]; mac != "" {
			e.MAC = append(e.MAC, Named[string]{network, mac})
		}
	}
	if n.BMC != nil {
		e.BMC = &ExpandedBMC{Address: addrString(n.BMC.Address), Hostname: n.BMC.Hostname}
		if n.BMC.Credentials.File != "" {
			e.BMC.Credentials = &n.BMC.Credentials
		}
	}
	return Named[ExpandedNode]{n.Name, e}
}

func expandVIP(v *VIP) Named[ExpandedVIP] {
	e := ExpandedVIP{
		Network: v.Network, Address: addrString(v.Address), Hostname: v.Hostname, VRID: v.VRID,
		Version: v.Version, Advertise: v.Advertise.String(), PreemptDelay: v.PreemptDelay.String(),
		Prefer: v.Prefer, Members: v.Members, Track: v.Track,
	}
	if !v.VRRP.IsZero() {
		e.VRRP = v.VRRP.v.ordered()
	}
	return Named[ExpandedVIP]{v.Name, e}
}

func expandService(s *Service) Named[ExpandedService] {
	e := ExpandedService{On: s.On, Port: int(s.Port), Tags: s.Tags, Address: addrString(s.Address)}
	if s.TTL != 0 {
		e.TTL = s.TTL.String()
	}
	if !s.Check.IsZero() {
		e.Check = s.Check.v.ordered()
	}
	return Named[ExpandedService]{s.Name, e}
}

func addrString(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// ordered is plain, with mappings in their order.
func (v *value) ordered() any {
	switch v.kind {
	case object:
		m := make(Mapping[any], len(v.entries))
		for i, e := range v.entries {
			m[i] = Named[any]{e.key, e.value.ordered()}
		}
		return m
	case list:
		items := make([]any, len(v.items))
		for i, item := range v.items {
			items[i] = item.ordered()
		}
		return items
	default:
		return v.scalar()
	}
}

// keys lists the top-level keys of the cluster file that has this meaning.
func (e *Expanded) keys() Mapping[any] {
	m := Mapping[any]{
		{"schema", e.Schema}, {"cluster", e.Cluster}, {"domain", e.Domain}, {"virtual_domain", e.VirtualDomain},
	}
	if e.NamePrefix != "" {
		m = append(m, Named[any]{"naming", Mapping[string]{{"prefix", e.NamePrefix}}})
	}
	m = append(m, Named[any]{"networks", e.Networks}, Named[any]{"roles", e.Roles}, Named[any]{"nodes", e.Nodes})
	if len(e.VIPs) > 0 {
		m = append(m, Named[any]{"vips", e.VIPs})
	}
	if len(e.Services) > 0 {
		m = append(m, Named[any]{"services", e.Services})
	}
	return append(m, e.Sections...)
}

// MarshalYAML gives the cluster file to the YAML library.
func (e *Expanded) MarshalYAML() (any, error) { return e.keys().MarshalYAML() }

// MarshalJSON writes the cluster file's keys after "path" and "sum".
func (e *Expanded) MarshalJSON() ([]byte, error) {
	return append(Mapping[any]{{"path", e.Path}, {"sum", e.Sum}}, e.keys()...).MarshalJSON()
}

// WriteYAML writes the expanded truth as a cluster file that Parse reads, with
// where it came from in a comment.
func (f *File) WriteYAML(w io.Writer) error {
	data, err := yaml.Marshal(f.Expanded())
	if err != nil {
		return fmt.Errorf("cluster: write %s as YAML: %w", f.Path, err)
	}
	_, err = fmt.Fprintf(w, "# %s, SHA-256 %s, expanded\n%s", strings.ToValidUTF8(oneLine(f.Path), "?"), f.Sum, data)
	return err
}

// WriteJSON writes the expanded truth as indented JSON.
func (f *File) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(f.Expanded()); err != nil {
		return fmt.Errorf("cluster: write %s as JSON: %w", f.Path, err)
	}
	return nil
}

// oneLine keeps a path inside its comment.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

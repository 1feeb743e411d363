package vrrp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"holdfast/cluster"
)

// Section is the top-level key of the cluster file that ValidateSection reads:
// what is the same for all virtual routers of a node.
const Section = "vrrp"

// Bounds of the keys below `vrrp:`.
const (
	maxStartupDelay = time.Hour
	maxDebounce     = time.Minute
	minAnnounce     = 10 * time.Millisecond
	maxAnnounce     = time.Minute
	minRefresh      = time.Second
	maxRefresh      = 24 * time.Hour
	maxRepeat       = 60
	minHookTimeout  = time.Second
	maxHookTimeout  = time.Hour
	maxRealtime     = 99  // sched(7)
	maxMembers      = 253 // each with a priority of its own
	maxTTL          = 255
	maxInterface    = 15 // characters, linux/if.h IFNAMSIZ less the zero
	// maxAddresses are what an advert counts (RFC 9568 §5.2.5); of IPv6, what
	// an Ethernet frame holds.
	maxAddresses  = 255
	maxAddresses6 = 90
)

// nodeSection is the top-level section as it stands in the file.
type nodeSection struct {
	Realtime int           `yaml:"realtime"`
	Notify   notifySection `yaml:"notify"`
}

// vipSection is `vrrp:` of a VIP.
type vipSection struct {
	Priority     map[string]int    `yaml:"priority"`
	Preempt      bool              `yaml:"preempt"`
	StartupDelay time.Duration     `yaml:"startup_delay"`
	Unicast      bool              `yaml:"unicast"`
	MinTTL       int               `yaml:"min_ttl"`
	Auth         cluster.SecretRef `yaml:"auth"`
	Checksum     string            `yaml:"checksum"`
	PrefixLength int               `yaml:"prefix_length"`
	Interface    string            `yaml:"interface"`
	Addresses    []string          `yaml:"addresses"`
	Excluded     []string          `yaml:"excluded"`
	Sync         string            `yaml:"sync"`
	Track        []trackSection    `yaml:"track"`
	Announce     announceSection   `yaml:"announce"`
	Debounce     time.Duration     `yaml:"debounce"`
	Fenced       bool              `yaml:"fenced"`
	Lease        time.Duration     `yaml:"lease"`
	Notify       notifySection     `yaml:"notify"`
}

type announceSection struct {
	Repeat  int           `yaml:"repeat"`
	Every   time.Duration `yaml:"every"`
	Refresh time.Duration `yaml:"refresh"`
}

type notifySection struct {
	Script  cluster.Section `yaml:"script"`
	Master  string          `yaml:"master"`
	Backup  string          `yaml:"backup"`
	Fault   string          `yaml:"fault"`
	Stop    string          `yaml:"stop"`
	User    string          `yaml:"user"`
	Timeout time.Duration   `yaml:"timeout"`
}

// trackSection is one item of `track:` below `vrrp:`.
type trackSection struct {
	Interface string          `yaml:"interface"`
	Service   string          `yaml:"service"`
	Script    cluster.Section `yaml:"script"`
	File      string          `yaml:"file"`
	Process   string          `yaml:"process"`
	Check     cluster.Section `yaml:"check"`
	Weight    *int            `yaml:"weight"`
	Reverse   bool            `yaml:"reverse"`
	Rise      int             `yaml:"rise"`
	Fall      int             `yaml:"fall"`
	Every     time.Duration   `yaml:"every"`
	Timeout   time.Duration   `yaml:"timeout"`
}

// ValidateSection checks the top-level `vrrp:` section; a file without one is
// in order. The error is cluster.Errors.
func ValidateSection(file *cluster.File, s cluster.Section) error {
	_, err := decodeNode(s)
	return err
}

// ValidateVIPs checks what the VIPs of a file say below their `vrrp:`, and
// what they track. s is the file's `vips` key. The error is cluster.Errors.
func ValidateVIPs(file *cluster.File, s cluster.Section) error {
	_, err := decodeVIPs(file, s)
	return err
}

// SettingsFrom understands a valid cluster file for a node. It reads the
// secrets that the file names. A node that is a member of no VIP has no
// routers.
func SettingsFrom(file *cluster.File, node string) (Settings, error) {
	n := file.Node(node)
	if n == nil {
		return Settings{}, fmt.Errorf("vrrp: node %q is not in the cluster file", node)
	}
	top, err := decodeNode(file.Section(Section))
	if err != nil {
		return Settings{}, err
	}
	vips, err := decodeVIPs(file, cluster.Section{})
	if err != nil {
		return Settings{}, err
	}
	b := builder{file: file, node: n, vips: vips, orders: orders(vips)}
	b.Hooks, b.Realtime = top.hooks, top.realtime
	for i := range vips {
		if slices.Contains(vips[i].Members, node) {
			if err := b.add(i); err != nil {
				return Settings{}, err
			}
		}
	}
	return b.Settings, nil
}

// builder makes the settings of one node.
type builder struct {
	Settings
	file   *cluster.File
	node   *cluster.Node
	vips   []vip
	orders []order
}

func (b *builder) add(i int) error {
	v := &b.vips[i]
	r := RouterSettings{
		Router: Router{
			Name: v.Name, Version: uint8(v.Version), VRID: uint8(v.VRID),
			Interval: v.Advertise, Checksum: v.checksum,
			Preempt: v.section.Preempt, PreemptDelay: v.PreemptDelay,
			StartupDelay: v.section.StartupDelay, Group: v.section.Sync, Fenced: v.section.Fenced,
			Interface:  cmp.Or(v.section.Interface, b.file.Network(v.Network).Interface),
			Advertised: v.advertised(), Held: v.held(),
		},
		Home: b.node.Addresses[v.Network], Network: v.Network, MinTTL: uint8(v.section.MinTTL),
		Order:    b.orders[i].nodes,
		Announce: Announcements(v.section.Announce),
		Debounce: v.section.Debounce, Hooks: v.hooks,
	}
	r.Priority = b.orders[i].ranks[slices.Index(r.Order, b.node.Name)]
	r.Source, r.Peers, r.Nodes = b.reach(v)
	if err := b.password(v, &r); err != nil {
		return err
	}
	r.Tracks = b.tracks(v)
	if r.Fenced {
		r.Lease = v.section.Lease
		r.Tracks = append(r.Tracks, Track{Name: storeTrack(v.Name)})
	}
	b.Routers = append(b.Routers, r)
	return nil
}

// reach is where adverts come from and go to.
func (b *builder) reach(v *vip) (source netip.Addr, peers []netip.Addr, nodes map[netip.Addr]string) {
	if v.Address.Is6() && !v.section.Unicast {
		return netip.Addr{}, nil, nil
	}
	nodes = map[netip.Addr]string{}
	for _, name := range v.Members {
		addr := b.file.Node(name).Addresses[v.Network]
		if name == b.node.Name {
			source = addr
			continue
		}
		nodes[addr] = name
		if v.section.Unicast {
			peers = append(peers, addr)
		}
	}
	return source, peers, nodes
}

// password reads the secret of version 2. It has 8 bytes on the wire, and
// keepalived cuts what is longer.
func (b *builder) password(v *vip, r *RouterSettings) error {
	if v.section.Auth.File == "" || v.Version != 2 {
		return nil
	}
	secret, err := readSecret(v.section.Auth.File)
	if err != nil {
		return fmt.Errorf("vrrp: the password of %s: %w", v.Name, err)
	}
	if len(secret) > len(r.Password) {
		b.Warnings = append(b.Warnings, fmt.Sprintf("%s: the password in %s is longer than the 8 bytes that version 2 has: only the first 8 count, as with keepalived",
			v.Name, v.section.Auth.File))
	}
	copy(r.Password[:], secret)
	return nil
}

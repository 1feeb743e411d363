package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"holdfast/cluster"
)

// Config is where a Server answers, to whom, and within which limits. Zero
// limits take their defaults; ConfigFrom makes a complete one.
type Config struct {
	Node       string // this node's name
	NodeID     string // UUID of its data directory
	Datacenter string // Consul's word for the cluster's name
	Version    string // of the program
	Server     bool   // takes part in Raft
	// Elsewhere, on an agent that follows a server, says where to ask for what
	// it has not: keys, sessions, tokens, Raft. "": everything is here.
	Elsewhere  string
	GossipPort uint16 // shown in /v1/agent/members; 8301 when zero

	Listen []netip.AddrPort // plain HTTP; loopback addresses only
	HTTPS  []netip.AddrPort // need Deps.TLS
	Socket string           // admin socket; "" none
	// AdminGroups may use the socket beside root and the agent's own user.
	AdminGroups []uint32

	// Loopback is what a program of this machine may do over plain HTTP
	// without the token: Read or Write (Write when zero).
	Loopback Access
	// Token, shown in X-Consul-Token or as a bearer, allows everything.
	// "": there is none. At least 16 bytes.
	Token string
	// Names are host names that mean this node in a Host header, beside
	// localhost and loopback addresses: what a browser was made to look up
	// (DNS rebinding) is not among them.
	Names []string

	MaxBody     int64 // bytes of a request's body; 1 MiB
	MaxValue    int64 // bytes of a KV value; 512 KiB, the most that the store takes
	MaxSnapshot int64 // bytes of a snapshot to restore; 1 GiB
	MaxBlocking int   // blocking queries at a time; 4096

	// SessionTTLMin is the shortest TTL of a session; 10 s, as Consul's.
	SessionTTLMin time.Duration
}

// Limits that no configuration changes.
const (
	maxMonitors     = 8
	maxURL          = 8 << 10 // bytes of a request's target
	maxHeader       = 64 << 10
	headerTimeout   = 5 * time.Second // also of the TLS handshake
	bodyTimeout     = 15 * time.Second
	leftoverTimeout = time.Second // for a body that nobody wants
	writeTimeout    = 30 * time.Second
	idleTimeout     = 2 * time.Minute
	stopTimeout     = 2 * time.Second
	proposeTimeout  = 15 * time.Second
	operateTimeout  = 30 * time.Second

	defaultPort       = 8500
	defaultHTTPSPort  = 8501
	defaultGossipPort = 8301
	minToken          = 16
)

func (c Config) withDefaults() Config {
	if c.GossipPort == 0 {
		c.GossipPort = defaultGossipPort
	}
	if c.Loopback == None {
		c.Loopback = Write
	}
	if c.MaxBody == 0 {
		c.MaxBody = 1 << 20
	}
	if c.MaxValue == 0 {
		c.MaxValue = 512 << 10
	}
	if c.MaxSnapshot == 0 {
		c.MaxSnapshot = 1 << 30
	}
	if c.MaxBlocking == 0 {
		c.MaxBlocking = 4096
	}
	if c.SessionTTLMin == 0 {
		c.SessionTTLMin = defaultSessionTTLMin
	}
	return c
}

// check finds what New refuses.
func (c Config) check(deps Deps) error {
	var problems []error
	if c.Node == "" || c.Datacenter == "" {
		problems = append(problems, errors.New("the node's name and the cluster's name are needed"))
	}
	for _, address := range c.Listen {
		if !address.Addr().IsLoopback() {
			problems = append(problems, fmt.Errorf("listen on %s: plain HTTP only on a loopback address; other addresses need TLS (https)", address))
		}
	}
	if len(c.HTTPS) > 0 && deps.TLS == nil {
		problems = append(problems, fmt.Errorf("listen on %s: HTTPS needs the node's certificate; make one with 'holdfast pki issue'", c.HTTPS[0]))
	}
	if len(c.HTTPS) > 0 && deps.Admin == nil && c.Token == "" {
		problems = append(problems, fmt.Errorf("listen on %s: HTTPS needs admin certificates or a token, or everyone could write", c.HTTPS[0]))
	}
	if c.Token != "" && len(c.Token) < minToken {
		problems = append(problems, fmt.Errorf("the token has %d bytes; at least %d", len(c.Token), minToken))
	}
	if c.Loopback != Read && c.Loopback != Write {
		problems = append(problems, errors.New("without a token, loopback may read or write"))
	}
	return errors.Join(problems...)
}

// section is the api section of the cluster file.
type section struct {
	Port          *int   `yaml:"port"`
	Loopback      string `yaml:"loopback"`
	HTTPSPort     *int   `yaml:"https_port"`
	Network       string `yaml:"network"`
	Token         *ref   `yaml:"token"`
	AdminGroup    string `yaml:"admin_group"`
	BlockingLimit *int   `yaml:"blocking_limit"`
	SnapshotLimit *int   `yaml:"snapshot_limit_mib"`
	SessionTTLMin *int   `yaml:"session_ttl_min_ms"`
}

// ref points at a secret.
type ref struct {
	File string `yaml:"file"`
}

// ValidateSection is the cluster.SectionValidator of the api section. It looks
// at the file alone: secrets and groups are those of each node.
func ValidateSection(f *cluster.File, s cluster.Section) error {
	if s.IsZero() {
		return nil
	}
	var in section
	if err := s.Decode(&in); err != nil {
		return err
	}
	var found cluster.Errors
	problem := func(key, format string, args ...any) {
		found = append(found, s.Errorf(key, format, args...))
	}
	between := func(key string, value *int, low, high int, unit string) {
		if value != nil && (*value < low || *value > high) {
			problem(key, "%s: %d is out of range: %d to %d%s", key, *value, low, high, unit)
		}
	}
	between("port", in.Port, 0, 65535, "; 0 turns plain HTTP off")
	between("https_port", in.HTTPSPort, 0, 65535, "; 0 turns HTTPS off")
	between("blocking_limit", in.BlockingLimit, 1, 1_000_000, " queries")
	between("session_ttl_min_ms", in.SessionTTLMin, 500, 3_600_000, " ms")
	between("snapshot_limit_mib", in.SnapshotLimit, 1, 1<<20, " MiB")
	if in.Port != nil && in.HTTPSPort != nil && *in.Port == *in.HTTPSPort && *in.Port != 0 {
		problem("https_port", "https_port: %d is the plain port too", *in.HTTPSPort)
	}
	switch in.Loopback {
	case "", "read", "write":
	default:
		problem("loopback", "loopback: %q; want read or write", in.Loopback)
	}
	if in.Network != "" && networkNamed(f, in.Network) == nil {
		problem("network", "network: there is no network %q", in.Network)
	}
	if in.Token != nil && !strings.HasPrefix(in.Token.File, "/") {
		problem("token", "token: want {file: PATH} with an absolute path")
	}
	if len(found) > 0 {
		return found
	}
	return nil
}

func networkNamed(f *cluster.File, name string) *cluster.Network {
	for i := range f.Networks {
		if f.Networks[i].Name == name {
			return &f.Networks[i]
		}
	}
	return nil
}

// ConfigFrom reads what the cluster file (its api section; the zero Section
// takes the defaults) says for a node, and the secrets and groups that it
// names. withTLS tells that the node has a certificate; without one there is
// no HTTPS. NodeID, Version, Server and Socket are left to the caller.
func ConfigFrom(f *cluster.File, s cluster.Section, node string, withTLS bool) (Config, error) {
	var in section
	if !s.IsZero() {
		if err := s.Decode(&in); err != nil {
			return Config{}, err
		}
	}
	config := Config{Node: node, Datacenter: f.Name, Names: []string{node}, Loopback: Write}
	if f.Domain != "" {
		config.Names = append(config.Names, node+"."+f.Domain)
	}
	if port := value(in.Port, defaultPort); port != 0 {
		config.Listen = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))}
	}
	if port := value(in.HTTPSPort, defaultHTTPSPort); port != 0 && withTLS {
		address, err := addressOn(f, node, in.Network)
		if err != nil {
			return Config{}, err
		}
		config.HTTPS = []netip.AddrPort{netip.AddrPortFrom(address, uint16(port))}
	}
	if in.Loopback == "read" {
		config.Loopback = Read
	}
	config.MaxBlocking = value(in.BlockingLimit, 0)
	config.MaxSnapshot = int64(value(in.SnapshotLimit, 0)) << 20
	config.SessionTTLMin = time.Duration(value(in.SessionTTLMin, 0)) * time.Millisecond
	var err error
	if in.Token != nil {
		if config.Token, err = readToken(in.Token.File); err != nil {
			return Config{}, err
		}
	}
	if in.AdminGroup != "" {
		gid, err := groupID(in.AdminGroup)
		if err != nil {
			return Config{}, err
		}
		config.AdminGroups = []uint32{gid}
	}
	return config.withDefaults(), nil
}

func value(given *int, otherwise int) int {
	if given == nil {
		return otherwise
	}
	return *given
}

// addressOn is the node's address on a network; "" is the main one.
func addressOn(f *cluster.File, name, network string) (netip.Addr, error) {
	node := f.Node(name)
	if node == nil {
		return netip.Addr{}, fmt.Errorf("api: node %s is not in %s", name, f.Path)
	}
	if network == "" {
		network = f.Main().Name
	}
	address, ok := node.Addresses[network]
	if !ok {
		return netip.Addr{}, fmt.Errorf("api: node %s has no address on network %s, where HTTPS is to listen: set api.network or https_port: 0", name, network)
	}
	return address, nil
}

// readToken reads a secret that others must not read. No error holds it.
func readToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("api: token: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("api: token: everyone may read %s (mode %04o): chmod 0640", path, info.Mode().Perm())
	}
	if info.Mode().Type() != fs.FileMode(0) || info.Size() > 4<<10 {
		return "", fmt.Errorf("api: token: %s: want a small regular file", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("api: token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if len(token) < minToken {
		return "", fmt.Errorf("api: token: %s holds %d bytes; at least %d ('openssl rand -hex 32' makes a good one)", path, len(token), minToken)
	}
	return token, nil
}

func groupID(name string) (uint32, error) {
	group, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("api: admin_group: %w", err)
	}
	gid, err := strconv.ParseUint(group.Gid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("api: admin_group %s: gid: %w", name, err)
	}
	return uint32(gid), nil
}

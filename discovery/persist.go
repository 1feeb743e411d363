package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/durable"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

const (
	registrationsFile    = "registrations.json"
	registrationsVersion = 1
	maxRegistrations     = 16 << 20 // bytes of the file
)

// registrations is what the API registered on this node.
type registrations struct {
	services map[string]ServiceDefinition // by ID
	checks   map[string]check.Definition  // by ID; those that did not come with a service
}

func (r registrations) clone() registrations {
	c := registrations{services: maps.Clone(r.services), checks: maps.Clone(r.checks)}
	if c.services == nil {
		c.services = map[string]ServiceDefinition{}
	}
	if c.checks == nil {
		c.checks = map[string]check.Definition{}
	}
	return c
}

// The form on the disk. Keys are added, never given another meaning; an older
// program ignores what it does not know.
type storedRegistrations struct {
	Version  int             `json:"version"`
	Services []storedService `json:"services,omitempty"`
	Checks   []storedCheck   `json:"checks,omitempty"`
}

type storedService struct {
	ID            string            `json:"id"`
	Name          string            `json:"name"`
	Tags          []string          `json:"tags,omitempty"`
	Address       netip.Addr        `json:"address,omitzero"`
	Port          uint16            `json:"port,omitempty"`
	Meta          map[string]string `json:"meta,omitempty"`
	PassingWeight uint16            `json:"passing_weight,omitempty"`
	WarningWeight uint16            `json:"warning_weight,omitempty"`
	Checks        []storedCheck     `json:"checks,omitempty"`
}

type storedCheck struct {
	ID              string              `json:"id"`
	Name            string              `json:"name,omitempty"`
	Notes           string              `json:"notes,omitempty"`
	Service         string              `json:"service,omitempty"`
	TCP             string              `json:"tcp,omitempty"`
	NTP             string              `json:"ntp,omitempty"`
	UDP             string              `json:"udp,omitempty"`
	GRPC            string              `json:"grpc,omitempty"`
	GRPCTLS         bool                `json:"grpc_tls,omitempty"`
	AliasNode       string              `json:"alias_node,omitempty"`
	AliasService    string              `json:"alias_service,omitempty"`
	HTTP            string              `json:"http,omitempty"`
	Method          string              `json:"method,omitempty"`
	Header          map[string][]string `json:"header,omitempty"`
	Body            string              `json:"body,omitempty"`
	ServerName      string              `json:"server_name,omitempty"`
	CAFile          string              `json:"ca_file,omitempty"`
	SkipVerify      bool                `json:"skip_verify,omitempty"`
	Process         string              `json:"process,omitempty"`
	TTL             duration            `json:"ttl,omitempty"`
	Interval        duration            `json:"interval,omitempty"`
	Timeout         duration            `json:"timeout,omitempty"`
	Rise            int                 `json:"rise,omitempty"`
	Fall            int                 `json:"fall,omitempty"`
	Initial         state.Status        `json:"initial,omitempty"`
	DeregisterAfter duration            `json:"deregister_after,omitempty"`
}

// duration is written as text: "10s".
type duration time.Duration

// MarshalText gives Go's form of a duration.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads Go's form of a duration.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = duration(v)
	return err
}

func encodeRegistrations(r registrations) ([]byte, error) {
	stored := storedRegistrations{Version: registrationsVersion}
	for _, id := range slices.Sorted(maps.Keys(r.services)) {
		s := r.services[id].Service
		entry := storedService{
			ID: s.ID, Name: s.Name, Tags: s.Tags, Address: s.Address, Port: s.Port, Meta: s.Meta,
			PassingWeight: s.Weights.Passing, WarningWeight: s.Weights.Warning,
		}
		for _, c := range r.services[id].Checks {
			entry.Checks = append(entry.Checks, storeCheck(c))
		}
		stored.Services = append(stored.Services, entry)
	}
	for _, id := range slices.Sorted(maps.Keys(r.checks)) {
		stored.Checks = append(stored.Checks, storeCheck(r.checks[id]))
	}
	return json.MarshalIndent(stored, "", "  ")
}

// decodeRegistrations reads what encodeRegistrations wrote, for the given
// node. Everything is validated as if it came through the API.
func decodeRegistrations(data []byte, node state.Node) (registrations, error) {
	if len(data) > maxRegistrations {
		return registrations{}, fmt.Errorf("%d bytes, more than %d", len(data), maxRegistrations)
	}
	var stored storedRegistrations
	if err := json.Unmarshal(data, &stored); err != nil {
		return registrations{}, err
	}
	if stored.Version != registrationsVersion {
		return registrations{}, fmt.Errorf("version %d; this program reads version %d", stored.Version, registrationsVersion)
	}
	r := registrations{}.clone()
	var all []ServiceDefinition
	for _, s := range stored.Services {
		prepared, err := prepare(node, s.definition())
		if err != nil {
			return registrations{}, err
		}
		r.services[prepared.Service.ID] = prepared
		all = append(all, prepared)
	}
	if err := distinct(all); err != nil {
		return registrations{}, err
	}
	for _, c := range stored.Checks {
		d := c.definition().WithDefaults()
		if err := d.Validate(); err != nil {
			return registrations{}, fmt.Errorf("check %q: %s", d.ID, flat(err))
		}
		if _, twice := r.checks[d.ID]; twice {
			return registrations{}, fmt.Errorf("check %q stands twice", d.ID)
		}
		if err := rehearseCheck(node, d); err != nil {
			return registrations{}, err
		}
		r.checks[d.ID] = d
	}
	return r, nil
}

func (s storedService) definition() ServiceDefinition {
	d := ServiceDefinition{Service: state.Service{
		ID: s.ID, Name: s.Name, Tags: s.Tags, Address: s.Address, Port: s.Port, Meta: s.Meta,
		Weights: state.Weights{Passing: s.PassingWeight, Warning: s.WarningWeight},
	}}
	for _, c := range s.Checks {
		d.Checks = append(d.Checks, c.definition())
	}
	return d
}

func storeCheck(d check.Definition) storedCheck {
	var alias check.Alias
	if d.Alias != nil {
		alias = *d.Alias
	}
	return storedCheck{
		UDP: d.UDP, GRPC: d.GRPC, GRPCTLS: d.GRPCTLS, AliasNode: alias.Node, AliasService: alias.Service,
		ID: d.ID, Name: d.Name, Notes: d.Notes, Service: d.ServiceID,
		TCP: d.TCP, NTP: d.NTP, HTTP: d.HTTP, Method: d.Method, Header: d.Header, Body: d.Body,
		ServerName: d.TLS.ServerName, CAFile: d.TLS.CAFile, SkipVerify: d.TLS.SkipVerify,
		Process: d.Process, TTL: duration(d.TTL),
		Interval: duration(d.Interval), Timeout: duration(d.Timeout), Rise: d.Rise, Fall: d.Fall,
		Initial: d.Initial, DeregisterAfter: duration(d.DeregisterAfter),
	}
}

func (c storedCheck) definition() check.Definition {
	var alias *check.Alias
	if c.AliasNode != "" || c.AliasService != "" {
		alias = &check.Alias{Node: c.AliasNode, Service: c.AliasService}
	}
	return check.Definition{
		UDP: c.UDP, GRPC: c.GRPC, GRPCTLS: c.GRPCTLS, Alias: alias,
		ID: c.ID, Name: c.Name, Notes: c.Notes, ServiceID: c.Service,
		TCP: c.TCP, NTP: c.NTP, HTTP: c.HTTP, Method: c.Method, Header: c.Header, Body: c.Body,
		TLS:     check.TLS{ServerName: c.ServerName, CAFile: c.CAFile, SkipVerify: c.SkipVerify},
		Process: c.Process, TTL: time.Duration(c.TTL),
		Interval: time.Duration(c.Interval), Timeout: time.Duration(c.Timeout), Rise: c.Rise, Fall: c.Fall,
		Initial: c.Initial, DeregisterAfter: time.Duration(c.DeregisterAfter),
	}
}

// save writes the registrations; they are on the disk when it returns.
func (a *Agent) save(r registrations) error {
	data, err := encodeRegistrations(r)
	if err != nil {
		return fmt.Errorf("encode the registrations: %w", err)
	}
	if len(data) > maxRegistrations { // it could not be read at the next start
		return fmt.Errorf("%w: the registrations of this node would take %d bytes, more than %d", state.ErrInvalid, len(data), maxRegistrations)
	}
	if err := durable.Replace(filepath.Join(a.config.DataDir, registrationsFile), data, 0o600); err != nil {
		return fmt.Errorf("keep the registrations: %w", err)
	}
	return nil
}

// restore reads the registrations. A file that can't be understood is put
// aside: the node's other services must not wait for it.
func (a *Agent) restore() error {
	path := filepath.Join(a.config.DataDir, registrationsFile)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.registered = registrations{}.clone()
		return nil
	case err != nil:
		return fmt.Errorf("read the registrations: %w", err)
	}
	r, err := decodeRegistrations(data, a.config.node())
	if err == nil {
		a.registered = r
		return nil
	}
	aside := path + ".bad"
	if renameErr := os.Rename(path, aside); renameErr != nil {
		return fmt.Errorf("put the damaged registrations aside: %w", renameErr)
	}
	a.registered = registrations{}.clone()
	a.log.Error("registrations of the API can't be read and were put aside", "file", aside, "error", err)
	a.deps.Board.Raise(conditionRegistrations, health.Warning, fmt.Sprintf(
		"services that were registered through the API are missing: %s can't be read (%s); register them again", aside, flat(err)))
	return nil
}

package check

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/cluster"
	"holdfast/internal/state"
)

// Target is the service that a check of the cluster file speaks of.
type Target struct {
	Service string // its ID and name
	Address netip.Addr
	Port    uint16
	// Catalog says that who makes the check has a catalog to look into, as
	// alias checks need.
	Catalog bool
}

// spec is a check as the cluster file has it.
type spec struct {
	Name    string        `yaml:"name"`
	Notes   string        `yaml:"notes"`
	Every   time.Duration `yaml:"every"`
	Timeout time.Duration `yaml:"timeout"`
	Rise    int           `yaml:"rise"`
	Fall    int           `yaml:"fall"`
	Initial state.Status  `yaml:"initial"`

	HTTP    string          `yaml:"http"`
	HTTPS   string          `yaml:"https"`
	TCP     cluster.Section `yaml:"tcp"`
	UDP     cluster.Section `yaml:"udp"`
	Send    string          `yaml:"send"`
	Expect  string          `yaml:"expect"`
	GRPC    cluster.Section `yaml:"grpc"`
	GRPCS   cluster.Section `yaml:"grpcs"`
	Service string          `yaml:"service"`
	Alias   string          `yaml:"alias"`
	User    string          `yaml:"user"`
	Damp    time.Duration   `yaml:"damp"`
	SSH     cluster.Section `yaml:"ssh"`
	DNS     cluster.Section `yaml:"dns"`
	Query   string          `yaml:"query"`
	NTP     cluster.Section `yaml:"ntp"`
	Script  cluster.Section `yaml:"script"`
	Process string          `yaml:"process"`
	TTL     time.Duration   `yaml:"ttl"`

	Method     string                     `yaml:"method"`
	Header     map[string]cluster.Section `yaml:"header"`
	Body       string                     `yaml:"body"`
	ServerName string                     `yaml:"server_name"`
	CAFile     string                     `yaml:"ca_file"`
	SkipVerify bool                       `yaml:"skip_verify"`
}

// fileKeys are the keys of the cluster file where they differ from the
// definition's.
var fileKeys = map[string]string{"interval": "every", "check": "", "id": ""}

// Decode reads the "check" of a service in the cluster file, a mapping or a
// list of them:
//
//	check: {http: /, every: 10s, timeout: 1s}
//	check: [{tcp: true}, {process: sshd, every: 30s}]
//
// http and https take a path, on the service's own address and port, or a
// whole URL; tcp, udp, ssh, ntp, grpc and grpcs take true, for the service's own address
// and port, or host:port; alias takes SERVICE, SERVICE@NODE or @NODE; dns takes true or address:port, and query a name and a type, as
// in "example.com A". The zero Section is no check. Errors are cluster.Errors with
// positions. The definitions have their defaults.
func Decode(section cluster.Section, target Target) ([]Definition, error) {
	var definitions []Definition
	var wrong cluster.Errors
	items := section.List()
	for i, item := range items {
		d, err := decodeOne(item, target)
		if len(items) > 1 {
			d.ID = fmt.Sprintf("service:%s:%d", target.Service, i+1)
		}
		if err != nil {
			wrong = append(wrong, positions(item, err)...)
			continue
		}
		for _, mistake := range mistakesOf(d.Validate()) {
			key := mistake.Key
			if file, ok := fileKeys[key]; ok {
				key = file
			}
			if (key == "http" || key == "grpc") && !item.At(key+"s").IsZero() {
				key += "s"
			}
			wrong = append(wrong, item.Errorf(key, "%s", mistake.Problem))
		}
		definitions = append(definitions, d.WithDefaults())
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return definitions, nil
}

func decodeOne(section cluster.Section, target Target) (Definition, error) {
	var s spec
	if err := section.Decode(&s); err != nil {
		return Definition{}, err
	}
	if s.HTTP != "" && s.HTTPS != "" {
		return Definition{}, section.Errorf("https", "stands beside http; make two checks of them, in a list")
	}
	d := Definition{
		ServiceID: target.Service, Notes: s.Notes,
		HTTP: s.url(target), Method: s.Method, Body: s.Body,
		TLS:     TLS{ServerName: s.ServerName, CAFile: s.CAFile, SkipVerify: s.SkipVerify},
		Process: s.Process, TTL: s.TTL, Query: s.Query,
		Interval: s.Every, Timeout: s.Timeout, Rise: s.Rise, Fall: s.Fall, Initial: s.Initial,
		Send: s.Send, Expect: s.Expect, User: s.User, Damp: s.Damp,
	}
	var wrong cluster.Errors
	note := func(err error) { wrong = append(wrong, positions(section, err)...) }
	for _, one := range []struct {
		section cluster.Section
		to      *string
	}{{s.TCP, &d.TCP}, {s.UDP, &d.UDP}, {s.SSH, &d.SSH}, {s.DNS, &d.DNS}, {s.NTP, &d.NTP}} {
		var err error
		if *one.to, err = hostPort(one.section, target); err != nil {
			note(err)
		}
	}
	var err error
	if d.GRPC, d.GRPCTLS, err = s.grpc(section, target); err != nil {
		note(err)
	}
	switch {
	case s.Alias != "" && !target.Catalog:
		note(section.Errorf("alias", "can't be looked at here; it belongs to the check of a service"))
	case s.Alias != "":
		if d.Alias, err = parseAlias(s.Alias); err != nil {
			note(section.Errorf("alias", "%s", err))
		}
	}
	if d.Script, err = texts(s.Script); err != nil {
		note(err)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Header)) {
		list, err := texts(s.Header[name])
		if err != nil {
			note(err)
			continue
		}
		if d.Header == nil {
			d.Header = map[string][]string{}
		}
		d.Header[name] = list
	}
	d.Name = cmp.Or(s.Name, strings.TrimSpace(target.Service+" "+d.Type()))
	if len(wrong) > 0 {
		return d, wrong
	}
	return d, nil
}

// url makes the URL of an http or https check; "" for another.
func (s spec) url(target Target) string {
	value, scheme := s.HTTP, "http"
	if s.HTTPS != "" {
		value, scheme = s.HTTPS, "https"
	}
	if strings.HasPrefix(value, "/") {
		return scheme + "://" + target.hostPort() + value
	}
	return value
}

// grpc makes the address of a grpc or grpcs check, with the service's name.
func (s spec) grpc(section cluster.Section, target Target) (address string, secure bool, err error) {
	value, secure := s.GRPC, !s.GRPCS.IsZero()
	switch {
	case secure && !s.GRPC.IsZero():
		return "", false, section.Errorf("grpcs", "stands beside grpc; make two checks of them, in a list")
	case secure:
		value = s.GRPCS
	case value.IsZero() && s.Service != "":
		return "", false, section.Errorf("service", "belongs to a grpc or grpcs check")
	}
	if address, err = hostPort(value, target); err == nil && address != "" && s.Service != "" {
		address += "/" + s.Service
	}
	return address, secure, err
}

func (t Target) hostPort() string {
	return net.JoinHostPort(t.Address.String(), strconv.Itoa(int(t.Port)))
}

// hostPort reads the value of tcp, ssh and the like: true or an address.
func hostPort(section cluster.Section, target Target) (string, error) {
	if section.IsZero() {
		return "", nil
	}
	var own bool
	if section.Decode(&own) == nil {
		if !own {
			return "", section.Errorf("", "false asks for nothing; leave the key out")
		}
		return target.hostPort(), nil
	}
	var address string
	if err := section.Decode(&address); err != nil {
		return "", err
	}
	return address, nil
}

// texts reads one text or a list of them, as they are: a command's arguments
// and a header's values are no folded lists.
func texts(section cluster.Section) ([]string, error) {
	var list []string
	for _, item := range section.List() {
		var text string
		if err := item.Decode(&text); err != nil {
			return nil, err
		}
		list = append(list, text)
	}
	return list, nil
}

// positions gives err's mistakes with their positions; one without stands at
// the section.
func positions(section cluster.Section, err error) cluster.Errors {
	var many cluster.Errors
	var one *cluster.Error
	switch {
	case errors.As(err, &many):
		return many
	case errors.As(err, &one):
		return cluster.Errors{one}
	}
	return cluster.Errors{section.Errorf("", "%s", err)}
}

// mistakesOf takes apart what Validate returned.
func mistakesOf(err error) []*Mistake {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	var list []*Mistake
	for _, one := range joined.Unwrap() {
		if m, ok := errors.AsType[*Mistake](one); ok {
			list = append(list, m)
		}
	}
	return list
}

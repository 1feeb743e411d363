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
// whole URL; tcp, ssh and ntp take true, for the service's own address and port, or
// host:port; dns takes true or address:port, and query a name and a type, as
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
			if key == "http" && !item.At("https").IsZero() {
				key = "https"
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
	}
	var wrong cluster.Errors
	note := func(err error) { wrong = append(wrong, positions(section, err)...) }
	var err error
	if d.TCP, err = hostPort(s.TCP, target); err != nil {
		note(err)
	}
	if d.SSH, err = hostPort(s.SSH, target); err != nil {
		note(err)
	}
	if d.DNS, err = hostPort(s.DNS, target); err != nil {
		note(err)
	}
	if d.NTP, err = hostPort(s.NTP, target); err != nil {
		note(err)
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

func (t Target) hostPort() string {
	return net.JoinHostPort(t.Address.String(), strconv.Itoa(int(t.Port)))
}

// hostPort reads the value of tcp, ssh and ntp: true or an address.
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

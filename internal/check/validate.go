package check

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (d Definition) validateKind(wrong *mistakes) {
	switch d.Type() {
	case "":
		wrong.add("check", "needs exactly one of http, tcp, udp, ssh, grpc, dns, ntp, script, process, alias and ttl")
		return
	case "tcp":
		wrong.address("tcp", d.TCP, checkHostPort)
	case "udp":
		wrong.address("udp", d.UDP, checkHostPort)
	case "ssh":
		wrong.address("ssh", d.SSH, checkHostPort)
	case "ntp":
		wrong.address("ntp", d.NTP, checkHostPort)
	case "grpc":
		wrong.address("grpc", d.GRPC, checkGRPC)
	case "http":
		d.validateHTTP(wrong)
	case "dns":
		d.validateDNS(wrong)
	case "script":
		if !filepath.IsAbs(d.Script[0]) {
			wrong.add("script", "%q is not an absolute path", d.Script[0])
		}
	case "process":
		if strings.ContainsFunc(d.Process, isControl) || strings.Contains(d.Process, "/") {
			wrong.add("process", "%q is not the name of a program; write it without its directory", d.Process)
		}
	case "alias":
		d.validateAlias(wrong)
	case "ttl":
		wrong.duration("ttl", d.TTL, MinTTL, MaxTTL)
		if d.Interval != 0 || d.Timeout != 0 || d.Rise > 1 || d.Fall > 1 || d.Damp != 0 {
			wrong.add("ttl", "nothing is probed, so interval, timeout, rise, fall and damp mean nothing")
		}
	}
	d.validateStrays(wrong)
}

// validateStrays tells of settings that belong to checks of another kind.
func (d Definition) validateStrays(wrong *mistakes) {
	kind := d.Type()
	talks := kind == "tcp" || kind == "udp"
	switch {
	case !talks && (d.Send != "" || d.Expect != ""):
		wrong.add("check", "send and expect belong to a tcp or udp check")
	case len(d.Send) > maxTalk:
		wrong.add("send", "has %d bytes, more than %d", len(d.Send), maxTalk)
	case len(d.Expect) > maxExpect:
		wrong.add("expect", "has %d bytes, more than %d", len(d.Expect), maxExpect)
	}
	if kind != "dns" && d.Query != "" {
		wrong.add("query", "belongs to a dns check")
	}
	if kind != "script" && d.User != "" {
		wrong.add("user", "belongs to a script check")
	}
	if kind != "http" && (d.Method != "" || len(d.Header) > 0 || d.Body != "") {
		wrong.add("check", "method, header and body belong to an http check")
	}
	if d.TLS != (TLS{}) && kind != "http" && !(kind == "grpc" && d.GRPCTLS) {
		wrong.add("check", "TLS settings belong to an https check, or to a grpc check with TLS")
	}
}

func (d Definition) validateAlias(wrong *mistakes) {
	switch a := *d.Alias; {
	case a.Service == "" && a.Node == "":
		wrong.add("alias", "names neither a service nor a node")
	case a.Node == "" && a.Service == d.ServiceID:
		wrong.add("alias", "names its own service %q", a.Service)
	case strings.ContainsFunc(a.Node+a.Service, isControl):
		wrong.add("alias", "%q has control characters", a.Node+a.Service)
	}
}

func (d Definition) validateDNS(wrong *mistakes) {
	if err := checkDNSServer(d.DNS); err != nil {
		wrong.add("dns", "%v", err)
	}
	if d.Query == "" {
		return
	}
	if _, _, err := question(d.Query); err != nil {
		wrong.add("query", "%v", err)
	}
}

func (d Definition) validateHTTP(wrong *mistakes) {
	u, err := url.Parse(d.HTTP)
	switch {
	case err != nil:
		wrong.add("http", "is not a URL") // the error would show a password
	case u.Scheme != "http" && u.Scheme != "https":
		wrong.add("http", "%q does not begin with http:// or https://", u.Redacted())
	case u.Host == "" || u.Hostname() == "":
		wrong.add("http", "%q has no host", u.Redacted())
	case u.Port() != "" && checkPort(u.Port()) != nil:
		wrong.add("http", "%q %s", u.Redacted(), checkPort(u.Port()))
	case u.Scheme == "http" && d.TLS != (TLS{}):
		wrong.add("http", "%q: TLS settings need an https URL", u.Redacted())
	}
	if strings.ContainsFunc(d.Method, notToken) {
		wrong.add("method", "%q is no HTTP method; write one such as GET or HEAD", d.Method)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Header)) {
		values := d.Header[name]
		if name == "" || strings.ContainsFunc(name, notToken) {
			wrong.add("header", "%q is no header's name", name)
		}
		for _, value := range values {
			if strings.ContainsFunc(value, isControl) {
				wrong.add("header", "the value of %s has control characters", name)
			}
		}
	}
	if len(d.Body) > maxBodyLength {
		wrong.add("body", "has %d bytes, more than %d", len(d.Body), maxBodyLength)
	}
}

// mistakes collects what is wrong with a definition.
type mistakes []error

func (m *mistakes) add(key, format string, args ...any) {
	*m = append(*m, &Mistake{Key: key, Problem: fmt.Sprintf(format, args...)})
}

// address looks at the text of a check that names where to connect to.
func (m *mistakes) address(key, text string, check func(string) error) {
	if err := check(text); err != nil {
		m.add(key, "%q %s", text, err)
	}
}

func (m *mistakes) duration(key string, value, low, high time.Duration) {
	if value != 0 && (value < low || value > high) {
		m.add(key, "%s is not within %s to %s", value, low, high)
	}
}

func (m *mistakes) count(key string, value, high int) {
	if value < 0 || value > high {
		m.add(key, "%d is not within 1 to %d", value, high)
	}
}

func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("is not host:port")
	}
	if host == "" {
		return errors.New("has no host before the port")
	}
	return checkPort(port)
}

func checkPort(s string) error {
	if port, err := strconv.ParseUint(s, 10, 16); err != nil || port == 0 {
		return fmt.Errorf("has port %s, not 1 to 65535", s)
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// notToken follows RFC 9110 §5.6.2.
func notToken(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

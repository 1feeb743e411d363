package aptproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// target is what a client asks for: a file of a server.
type target struct {
	https bool
	host  string // lower case, with the port if it is not the scheme's own
	path  string // decoded and clean, begins with "/"
	query string // as it came, without "?"
}

// errTarget is wrapped by every error about what was asked for.
var errTarget = errors.New("this is no request for a package proxy")

// maxPath bounds a path, in bytes.
const maxPath = 4096

// httpsMark is how apt-cacher-ng's clients ask for a server that speaks TLS:
// http://HTTPS///host/path.
const httpsMark = "HTTPS"

// parseTarget reads the target of a GET: an absolute URL when the client has us
// for its proxy, or /HOST/PATH when it has us in its sources.list.
func parseTarget(u *url.URL) (target, error) {
	host, rest, query := u.Host, u.Path, u.RawQuery
	switch {
	case u.User != nil || u.Fragment != "" || u.Opaque != "":
		return target{}, fmt.Errorf("%w: user, fragment or opaque part in the URL", errTarget)
	case strings.Contains(strings.ToLower(u.RawPath), "%2f") || strings.Contains(strings.ToLower(u.RawPath), "%5c"):
		return target{}, fmt.Errorf("%w: an encoded slash in the path", errTarget)
	}
	t := target{query: query}
	switch u.Scheme {
	case "http":
	case "https":
		t.https = true
	case "":
		host = ""
	default:
		return target{}, fmt.Errorf("%w: the scheme %q is neither http nor https", errTarget, clip(u.Scheme))
	}
	inPath := u.Scheme == ""
	if strings.EqualFold(host, httpsMark) {
		inPath, rest = true, "/"+httpsMark+"///"+strings.TrimLeft(rest, "/")
	}
	if inPath {
		if after, ok := strings.CutPrefix(rest, "/"+httpsMark+"///"); ok {
			t.https, rest = true, after
		}
		host, rest, _ = strings.Cut(strings.TrimPrefix(rest, "/"), "/")
		rest = "/" + rest
	}
	var err error
	if t.host, err = cleanHost(host, t.https); err != nil {
		return target{}, err
	}
	if strings.EqualFold(t.host, httpsMark) {
		return target{}, fmt.Errorf("%w: after %s come three slashes and a host", errTarget, httpsMark)
	}
	t.path, err = cleanPath(rest)
	return t, err
}

// cleanHost accepts a host name or address with a port of its own.
func cleanHost(text string, https bool) (string, error) {
	host, port := text, ""
	if h, p, err := net.SplitHostPort(text); err == nil {
		host, port = h, p
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 || p[0] == '0' {
			return "", fmt.Errorf("%w: %q is no port", errTarget, clip(p))
		}
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		if addr.Zone() != "" {
			return "", fmt.Errorf("%w: the address %q has a zone", errTarget, clip(text))
		}
		host = addr.String()
		if addr.Is6() {
			host = "[" + host + "]"
		}
	} else if !validHost(host) {
		return "", fmt.Errorf("%w: %q is no host name", errTarget, clip(text))
	}
	if port == "" || port == "80" && !https || port == "443" && https {
		return host, nil
	}
	return host + ":" + port, nil
}

func validHost(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return false
			}
		}
	}
	return true
}

// cleanPath accepts a path that doesn't climb. Doubled slashes become one, as
// servers take them; apt writes them for flat repositories ("/./").
func cleanPath(p string) (string, error) {
	if len(p) > maxPath {
		return "", fmt.Errorf("%w: the path is longer than %d bytes", errTarget, maxPath)
	}
	for _, c := range []byte(p) {
		if c < ' ' || c == 0x7f || c == '\\' {
			return "", fmt.Errorf("%w: a control character or backslash in the path", errTarget)
		}
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: a part of the path is \"..\"", errTarget)
		}
	}
	clean := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	return clean, nil
}

// url is where the target is.
func (t target) url() *url.URL {
	u := &url.URL{Scheme: "http", Host: t.host, Path: t.path, RawQuery: t.query}
	if t.https {
		u.Scheme = "https"
	}
	return u
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

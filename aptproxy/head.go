package aptproxy

import (
	"bytes"
	"strings"
)

// head is what matters of a request in the form in which apt asks for files.
type head struct {
	target string // as in the request line
	agent  string // User-Agent; "" none
}

// verdict is what parseHead makes of bytes.
type verdict int

const (
	incomplete verdict = iota // they may become a plain request with more
	plainGet                  // a GET that asks for the whole of a file
	unusual                   // anything else: net/http reads it
)

// parseHead reads the head of a request at the beginning of buf, and gives its
// length when it is a plain GET of HTTP/1.1 (RFC 9112 §3). It accepts less than
// HTTP does, and nothing that HTTP does not: what it is not sure of is unusual.
func parseHead(buf []byte) (h head, n int, v verdict) {
	const method, version = "GET ", " HTTP/1.1"
	if k := min(len(buf), len(method)); string(buf[:k]) != method[:k] {
		return head{}, 0, unusual
	}
	hosts := 0
	for first := true; ; first = false {
		end := bytes.IndexByte(buf[n:], '\n')
		if end < 0 {
			return head{}, 0, incomplete
		}
		line := buf[n : n+end]
		n += end + 1
		if len(line) == 0 || line[len(line)-1] != '\r' {
			return head{}, 0, unusual
		}
		line = line[:len(line)-1]
		if first {
			target, ok := bytes.CutSuffix(line[len(method):], []byte(version))
			if !ok || len(line) < len(method)+len(version) || !visible(target) {
				return head{}, 0, unusual
			}
			h.target = string(target)
			continue
		}
		if len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !printable(value) {
			return head{}, 0, unusual
		}
		switch harmless(name) {
		case "host":
			hosts++
			if !plainHost(bytes.Trim(value, " \t")) {
				return head{}, 0, unusual
			}
		case "user-agent":
			if h.agent == "" {
				h.agent = string(bytes.Trim(value, " \t"))
			}
		case "":
			return head{}, 0, unusual
		}
	}
	if hosts != 1 || h.target == "" {
		return head{}, 0, unusual
	}
	return h, n, plainGet
}

// harmless gives the name of a header field that changes nothing about the
// answer to a file that is vouched for, in lower case; "" for all others.
func harmless(name []byte) string {
	for _, known := range [...]string{"host", "user-agent", "accept", "cache-control", "pragma", "accept-encoding", "accept-language"} {
		if len(name) == len(known) && strings.EqualFold(string(name), known) {
			return known
		}
	}
	return ""
}

// visible tells whether all bytes are visible characters of ASCII.
func visible(p []byte) bool {
	for _, c := range p {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}

// printable allows white space, too.
func printable(p []byte) bool {
	for _, c := range p {
		if c < ' ' && c != '\t' || c >= 0x7f {
			return false
		}
	}
	return true
}

// plainHost tells whether a Host is a name or address, with a port or not.
func plainHost(p []byte) bool {
	for _, c := range p {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '.', c == '-', c == '_', c == ':', c == '[', c == ']':
		default:
			return false
		}
	}
	return len(p) > 0
}

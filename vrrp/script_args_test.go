package vrrp

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

// args are a command's words: those with "=" by their key, the others in order.
type args struct {
	t     *testing.T
	words []string
	keys  map[string]string
}

func parseArgs(t *testing.T, words []string) args {
	a := args{t: t, keys: map[string]string{}}
	for _, word := range words {
		if key, value, ok := strings.Cut(word, "="); ok {
			a.keys[key] = value
			continue
		}
		a.words = append(a.words, word)
	}
	return a
}

func (a args) name(i int) string {
	a.t.Helper()
	if i >= len(a.words) {
		a.t.Fatalf("words %q: number %d is missing", a.words, i+1)
	}
	return a.words[i]
}

func (a args) addr(i int) netip.Addr { return netip.MustParseAddr(a.name(i)) }

func (a args) span(i int) time.Duration { return a.parseDuration(a.name(i)) }

func (a args) parseDuration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		a.t.Fatal(err)
	}
	return d
}

func (a args) duration(key string, otherwise time.Duration) time.Duration {
	if s, ok := a.keys[key]; ok {
		return a.parseDuration(s)
	}
	return otherwise
}

func (a args) number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		a.t.Fatal(err)
	}
	return n
}

func (a args) list(key string) []string {
	if a.keys[key] == "" {
		return nil
	}
	return strings.Split(a.keys[key], ",")
}

func (a args) addrs(key string) []netip.Addr {
	var list []netip.Addr
	for _, s := range a.list(key) {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

// router sets what the keys name.
func (a args) router(r *Router) {
	for key, value := range a.keys {
		switch key {
		case "interface":
			r.Interface = value
		case "version":
			r.Version = uint8(a.number(value))
		case "vrid":
			r.VRID = uint8(a.number(value))
		case "priority":
			r.Priority = uint8(a.number(value))
		case "interval":
			r.Interval = a.parseDuration(value)
		case "source":
			r.Source = netip.MustParseAddr(value)
		case "addresses":
			r.Advertised = a.addrs(key)
		case "held":
			r.Held = nil
			for _, s := range a.list(key) {
				r.Held = append(r.Held, netip.MustParsePrefix(s))
			}
		case "peers":
			r.Peers = a.addrs(key)
		case "password":
			r.Password = [8]byte{}
			copy(r.Password[:], value)
		case "checksum":
			r.Checksum = map[string]Checksum{"pseudo": PseudoHeader, "plain": Plain}[value]
		case "preempt":
			r.Preempt = value == "yes"
		case "preempt_delay":
			r.PreemptDelay = a.parseDuration(value)
		case "startup_delay":
			r.StartupDelay = a.parseDuration(value)
		case "group":
			r.Group = value
		case "tracks": // NAME:WEIGHT[:number][:reverse],...; _ in a name is a blank
			r.Tracks = nil
			for _, s := range a.list(key) {
				words := strings.Split(s, ":")
				t := Track{Name: strings.ReplaceAll(words[0], "_", " "), Weight: a.number(words[1])}
				for _, flag := range words[2:] {
					t.Number = t.Number || flag == "number"
					t.Reverse = t.Reverse || flag == "reverse"
				}
				r.Tracks = append(r.Tracks, t)
			}
		default:
			a.t.Fatalf("unknown key %q of a router", key)
		}
	}
}

// advert is what the router itself would send, but for what the words say.
func (a args) advert(r *router) *Advert {
	advert := &Advert{
		Version: r.Version, VRID: r.VRID, Priority: uint8(a.number(a.name(2))), Interval: r.Interval,
		AuthType: r.authType(), Password: r.Password, Checksum: r.Checksum, Addresses: r.Advertised,
	}
	for key, value := range a.keys {
		switch key {
		case "version":
			advert.Version = uint8(a.number(value))
		case "vrid":
			advert.VRID = uint8(a.number(value))
		case "interval":
			advert.Interval = a.parseDuration(value)
		case "auth":
			advert.AuthType = uint8(a.number(value))
		case "password":
			advert.AuthType, advert.Password = AuthPass, [8]byte{}
			copy(advert.Password[:], value)
		case "checksum":
			advert.Checksum = map[string]Checksum{"pseudo": PseudoHeader, "plain": Plain}[value]
		case "addresses":
			advert.Addresses = a.addrs(key)
		default:
			a.t.Fatalf("unknown key %q of an advert", key)
		}
	}
	return advert
}

// track reads up, down or a number.
func (a args) track(i int) (up bool, value int) {
	switch word := a.name(i); word {
	case "up":
		return true, 0
	case "down":
		return false, 0
	default:
		return true, a.number(word)
	}
}

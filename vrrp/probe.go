package vrrp

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Level is how bad a Finding is.
type Level string

// The levels.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing that a probe looked at.
type Finding struct {
	Router string `json:"router"` // "" all of them
	What   string `json:"what"`   // interface, mtu, adverts, agreement, owner, address, sysctl, guard
	Level  Level  `json:"level"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"` // what to do; "" when it is well
}

// Kernel is what a probe asks beside the routers.
type Kernel interface {
	// WhoHas asks the neighbours on an interface who has addresses, and
	// collects what they answer for some 300 ms.
	WhoHas(ctx context.Context, link string, from netip.Addr, addrs []netip.Addr) (map[netip.Addr][]net.HardwareAddr, error)
	// MTU is an interface's, in bytes.
	MTU(link string) (int, error)
	// Sysctl reads a setting, such as "net/ipv4/conf/eth0/arp_ignore".
	Sysctl(name string) (string, error)
}

// probe looks at the path of one router or of all.
func (a *Admin) probe(r *http.Request) (any, error) {
	reports, err := a.Routers.Status(r.Context())
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	findings := []Finding{a.probeGuard(len(reports))}
	found := name == ""
	for i := range reports {
		if name == "" || reports[i].Settings.Name == name {
			found = true
			p := prober{ctx: r.Context(), kernel: a.Kernel, report: &reports[i], view: viewOf(a.Node, &reports[i]), now: a.Now()}
			p.all()
			findings = append(findings, p.findings...)
		}
	}
	if !found {
		return nil, fmt.Errorf("%s: %w (%s)", name, ErrUnknown, a.Node)
	}
	return findings, nil
}

func (a *Admin) probeGuard(routers int) Finding {
	switch g := a.Routers.Guard(); {
	case routers == 0:
		return Finding{What: "guard", Level: OK, Text: "this node is a member of no VIP"}
	case g.PID != 0:
		return Finding{What: "guard", Level: OK, Text: fmt.Sprintf("runs as process %d", g.PID)}
	default:
		return Finding{
			What: "guard", Level: Warn, Text: "does not run: " + cmp.Or(g.Error, "it was not started"),
			Remedy: "until it does, a crash of the agent leaves its addresses behind; the log says why it ended",
		}
	}
}

// prober looks at one router.
type prober struct {
	ctx      context.Context
	kernel   Kernel
	report   *RouterReport
	view     View
	now      time.Time
	findings []Finding
}

func (p *prober) note(what string, level Level, remedy, format string, args ...any) {
	p.findings = append(p.findings, Finding{Router: p.view.Name, What: what, Level: level, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (p *prober) all() {
	if !p.view.Link.Up {
		p.note("interface", Fail, "bring it up, or take this node out of the VIP's members", "%s", cmp.Or(p.view.Link.Why, "it is down"))
		return
	}
	p.note("interface", OK, "", "%s is up", p.view.Link.Name)
	p.adverts()
	p.agreement()
	p.addresses()
	if p.kernel != nil {
		p.mtu()
		p.sysctls()
		p.owners()
	}
}

// recent is how long ago an advert may be to count as heard just now.
func (p *prober) recent() time.Duration { return 4*time.Duration(p.view.Interval) + time.Second }

func (p *prober) adverts() {
	stats := &p.view.Stats
	if p.view.State == stateLabel(Active) {
		switch {
		case stats.SendErrors > 0 && p.now.Sub(stats.LastSent) > p.recent():
			p.note("adverts", Fail, "look for a firewall that drops protocol 112 on the way out; the log has the error", "%d could not be sent, the last that was is %s ago", stats.SendErrors, span(p.now.Sub(stats.LastSent)))
		default:
			p.note("adverts", OK, "", "%d sent, every %s%s", stats.Sent, time.Duration(p.view.Interval), p.summed())
		}
		for i := range p.view.Peers {
			peer := &p.view.Peers[i]
			if !peer.Heard.IsZero() && peer.Priority > 0 && p.now.Sub(peer.Heard) < p.recent() {
				p.note("adverts", Fail, "what it hears of us is lost on the way, or it disagrees: probe there, too", "%s advertises as well (priority %d): two nodes act", peer.name(), peer.Priority)
			}
		}
		return
	}
	switch ago := p.now.Sub(stats.LastSeen); {
	case stats.Received == 0:
		p.note("adverts", Fail, p.lossRemedy(), "none arrived since the agent began")
	case ago > p.recent():
		p.note("adverts", Warn, p.lossRemedy(), "%d received, the last %s ago", stats.Received, span(ago))
	default:
		p.note("adverts", OK, "", "%d received, the last %s ago", stats.Received, span(ago))
	}
}

// summed says how our adverts are summed, where there are two ways. That a
// peer does it otherwise is a disagreement.
func (p *prober) summed() string {
	if s := &p.report.Settings; s.Version == 2 || s.is6() {
		return ""
	}
	return ", checksum " + p.report.Settings.Checksum.String()
}

func (p *prober) lossRemedy() string {
	if len(p.report.Settings.Peers) > 0 {
		return "let protocol 112 from the other members pass the firewall here, and see that the holder lists this node"
	}
	group := "224.0.0.18"
	if p.report.Settings.Source.Is6() {
		group = "ff02::12"
	}
	return fmt.Sprintf("let protocol 112 to %s pass the firewall; if it does, the switch's multicast snooping drops it: turn it off for that group, or set unicast: true", group)
}

func (p *prober) agreement() {
	for i := range p.view.Peers {
		peer := &p.view.Peers[i]
		for _, d := range peer.Disagrees {
			p.note("agreement", Fail, "make the two configurations agree", "%s: %s", peer.name(), disagreementWords(d))
		}
		if peer.Node == "" && len(p.report.Settings.Nodes) > 0 && !peer.Heard.IsZero() {
			p.note("agreement", Fail, fmt.Sprintf("give one of the two another VRID than %d, or make it a member", p.view.VRID), "%s advertises VRID %d and is no member of the VIP: another cluster on the same wire?", peer.Address, p.view.VRID)
		}
	}
	if len(p.findings) > 0 && p.findings[len(p.findings)-1].What != "agreement" {
		p.note("agreement", OK, "", "nobody who was heard says otherwise")
	}
}

func (p *prober) addresses() {
	for _, a := range p.view.Addresses {
		switch {
		case a.Error != "":
			p.note("address", Fail, "holdfast vip plan shows what is missing", "%s: %s", a.Address, a.Error)
		case a.Wanted && !a.Present:
			p.note("address", Fail, "holdfast vip plan shows what is missing", "%s is not on %s", a.Address, p.view.Link.Name)
		case a.Present && !a.Wanted:
			p.note("address", Fail, "holdfast vip plan says whose it is", "%s is on %s, and this node does not hold it", a.Address, p.view.Link.Name)
		}
	}
	if p.view.Claimant != "" {
		p.note("owner", Fail, "find who has that hardware address", "%s answers for an address that this node holds", p.view.Claimant)
	}
}

// mtu checks that an advert fits.
func (p *prober) mtu() {
	mtu, err := p.kernel.MTU(p.view.Link.Name)
	if err != nil {
		p.note("mtu", Warn, "", "%v", err)
		return
	}
	size := 20 + 8 + 4*len(p.report.Settings.Advertised) + 8 // version 2 has 8 more (RFC 3768 §5.1)
	if p.report.Settings.Source.Is6() {
		size = 40 + 8 + 16*len(p.report.Settings.Advertised)
	}
	if size > mtu {
		p.note("mtu", Fail, "make some addresses excluded", "an advert has %d bytes, %s takes %d", size, p.view.Link.Name, mtu)
		return
	}
	p.note("mtu", OK, "", "%d, an advert has %d bytes", mtu, size)
}

func (p *prober) sysctl(name string) string {
	value, err := p.kernel.Sysctl(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(value)
}

func (p *prober) sysctls() {
	link := p.view.Link.Name
	before := len(p.findings)
	if p.report.Settings.Source.Is4() {
		for _, scope := range []string{"all", link} {
			if p.sysctl("net/ipv4/conf/"+scope+"/arp_ignore") == "8" {
				p.note("sysctl", Fail, fmt.Sprintf("sysctl -w net.ipv4.conf.%s.arp_ignore=0", scope), "arp_ignore of %s is 8: the node answers for no address, its own included", scope)
			}
		}
		short := slices.ContainsFunc(p.view.Addresses, func(a AddressView) bool { return a.Address.Addr().Is4() && !a.Address.IsSingleIP() })
		if short && p.sysctl("net/ipv4/conf/all/promote_secondaries") == "0" && p.sysctl("net/ipv4/conf/"+link+"/promote_secondaries") == "0" {
			p.note("sysctl", Warn, fmt.Sprintf("sysctl -w net.ipv4.conf.%s.promote_secondaries=1", link), "promote_secondaries is 0: removing the first address of a prefix removes the others of it; single addresses (/32) have no such trouble")
		}
	} else if p.sysctl("net/ipv6/conf/"+link+"/disable_ipv6") == "1" {
		p.note("sysctl", Fail, fmt.Sprintf("sysctl -w net.ipv6.conf.%s.disable_ipv6=0", link), "%s has no IPv6", link)
	}
	if len(p.findings) == before {
		p.note("sysctl", OK, "", "nothing in the way")
	}
}

// owners asks the neighbours who has the addresses, and compares with who
// advertises them.
func (p *prober) owners() {
	var asked []netip.Addr
	for _, a := range p.view.Addresses {
		asked = append(asked, a.Address.Addr())
	}
	holder := p.report.Status.Active
	if holder.IsValid() && p.view.State != stateLabel(Active) {
		asked = append(asked, holder)
	}
	answers, err := p.kernel.WhoHas(p.ctx, p.view.Link.Name, p.report.Settings.Source, asked)
	if err != nil {
		p.note("owner", Warn, "", "the neighbours could not be asked: %v", err)
		return
	}
	for _, a := range p.view.Addresses {
		p.owner(a.Address.Addr(), answers[a.Address.Addr()], answers[holder])
	}
}

func (p *prober) owner(addr netip.Addr, macs, holder []net.HardwareAddr) {
	var names []string
	for _, mac := range macs {
		names = append(names, mac.String())
	}
	who := strings.Join(names, " and ")
	switch {
	case p.view.State == stateLabel(Active) && len(macs) == 0:
		p.note("owner", OK, "", "nobody else answers for %s", addr)
	case p.view.State == stateLabel(Active):
		p.note("owner", Fail, "find who has that hardware address: an old holder that crashed, or a machine with the same address", "%s answers for %s, which this node holds", who, addr)
	case len(macs) == 0 && p.view.Holder == "":
		p.note("owner", Warn, "", "nobody answers for %s, and nobody is known to hold it", addr)
	case len(macs) == 0:
		p.note("owner", Fail, "look at holdfast vip plan there, and for a filter of ARP or neighbour discovery", "nobody answers for %s, which %s holds", addr, p.view.Holder)
	case len(macs) > 1:
		p.note("owner", Fail, "one of them holds what it should not: holdfast vip plan on each", "%s answer for %s", who, addr)
	case len(holder) == 1 && holder[0].String() != who:
		p.note("owner", Fail, "find who has that hardware address", "%s answers for %s, but %s, which advertises it, has %s", who, addr, p.view.Holder, holder[0])
	default:
		p.note("owner", OK, "", "%s answers for %s", who, addr)
	}
}

package dns

import (
	"strings"

	"github.com/miekg/dns"
)

// relevant leaves of a forwarder's answer what has to do with the question:
// records of the name and of those that aliases lead to, the authority for
// them, and addresses of what the answer names. Anything else is somebody's
// attempt to be believed about other names (RFC 5452 §6), or of no use.
// What concerns the two ends of a hop only, the OPT (RFC 6891 §6.1.1) and
// signatures of the message, is left out too. m stays as it is.
func relevant(m *dns.Msg, asked string) *dns.Msg {
	kept := &dns.Msg{MsgHdr: m.MsgHdr}
	chain := aliases(m.Answer, asked)
	for _, rr := range m.Answer {
		owner := strings.ToLower(rr.Header().Name)
		if chain[owner] || rr.Header().Rrtype == dns.TypeDNAME && above(owner, chain) || isSignature(rr) && above(owner, chain) {
			kept.Answer = append(kept.Answer, dns.Copy(rr))
		}
	}
	for _, rr := range m.Ns {
		owner := strings.ToLower(rr.Header().Name)
		switch rr.Header().Rrtype {
		case dns.TypeSOA, dns.TypeNS, dns.TypeDS:
			if above(owner, chain) {
				kept.Ns = append(kept.Ns, dns.Copy(rr))
			}
		case dns.TypeNSEC, dns.TypeNSEC3, dns.TypeRRSIG:
			kept.Ns = append(kept.Ns, dns.Copy(rr)) // proofs of absence stand at other names
		}
	}
	named := targets(kept.Answer, kept.Ns)
	for _, rr := range m.Extra {
		switch rr.Header().Rrtype {
		case dns.TypeA, dns.TypeAAAA, dns.TypeRRSIG:
			if named[strings.ToLower(rr.Header().Name)] {
				kept.Extra = append(kept.Extra, dns.Copy(rr))
			}
		}
	}
	return kept
}

func isSignature(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeRRSIG }

// aliases are the names that a question leads to: itself, and what CNAMEs
// make of it, in whatever order they stand. A DNAME's CNAME goes along with
// it (RFC 6672 §3.1).
func aliases(answer []dns.RR, asked string) map[string]bool {
	next := map[string]string{}
	for _, rr := range answer {
		if c, ok := rr.(*dns.CNAME); ok {
			next[strings.ToLower(c.Hdr.Name)] = strings.ToLower(c.Target)
		}
	}
	chain := map[string]bool{asked: true}
	for at := asked; ; {
		to, ok := next[at]
		if !ok || chain[to] {
			return chain
		}
		chain[to], at = true, to
	}
}

// above tells whether a name is one of the chain or an ancestor of one.
func above(owner string, chain map[string]bool) bool {
	for n := range chain {
		if dns.IsSubDomain(owner, n) {
			return true
		}
	}
	return false
}

// targets are the names whose addresses are worth having beside records.
func targets(sections ...[]dns.RR) map[string]bool {
	named := map[string]bool{}
	for _, section := range sections {
		for _, rr := range section {
			switch rr := rr.(type) {
			case *dns.NS:
				named[strings.ToLower(rr.Ns)] = true
			case *dns.MX:
				named[strings.ToLower(rr.Mx)] = true
			case *dns.SRV:
				named[strings.ToLower(rr.Target)] = true
			case *dns.SVCB:
				named[strings.ToLower(rr.Target)] = true
			case *dns.HTTPS:
				named[strings.ToLower(rr.Target)] = true
			}
		}
	}
	return named
}

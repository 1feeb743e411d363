package lb

import (
	"context"
	"net/netip"

	"holdfast/internal/check"
)

// pathProbe looks at a real server as clients reach it: while this node directs,
// through IPVS to the address; else, since backup_only keeps IPVS from
// directing, at the server's own address.
type pathProbe struct {
	direct, through check.Probe
	directing       func() bool
}

func (p *pathProbe) Probe(ctx context.Context) check.Result {
	if !p.directing() {
		return p.direct.Probe(ctx)
	}
	r := p.through.Probe(ctx)
	r.Output = "through the address: " + r.Output
	return r
}

// newProbe makes the probe of a server's check.
func (s *Service) newProbe(d check.Definition, commands check.Commander) (check.Probe, error) {
	through, err := check.NewProbe(d, commands)
	if err != nil || d.Via.Mark == 0 {
		return through, err
	}
	d.Via = check.Via{}
	direct, err := check.NewProbe(d, commands)
	return &pathProbe{direct: direct, through: through, directing: s.directing}, err
}

// via is the way through the address to one of its servers; without a mark
// there is none.
func (v *VirtualService) via(r Server) check.Via {
	if r.Mark == 0 || !v.From.IsValid() {
		return check.Via{}
	}
	return check.Via{To: netip.AddrPortFrom(v.Addr, v.Port), From: v.From, Mark: r.Mark}
}

// directing tells whether the tables are in force.
func (s *Service) directing() bool { return s.Plan().Directs }

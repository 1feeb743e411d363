package aptproxy

import "context"

// frozen is the generation of a suite that a client is held at; "" when it is
// not.
func (s *Server) frozen(_ *repository, _, _ string) string { return "" }

// viewOf is the generation of a suite that a client is to see now.
func (s *Server) viewOf(ctx context.Context, r *repository, client, dir string) (*generation, error) {
	if id := s.frozen(r, client, dir); id != "" {
		if su := r.suite(dir); su != nil {
			if g := su.find(id); g != nil {
				return g, nil
			}
		}
	}
	return s.refresh(ctx, r, dir)
}

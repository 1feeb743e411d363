package aptproxy

// Stored is how many bytes of packages are kept; 0 before Run.
func (s *Server) Stored() int64 {
	if store := s.room.Load(); store != nil {
		return int64(store.Stats().Bytes)
	}
	return 0
}

// Shed removes packages of about want bytes, those that are needed least
// first and those that must stay never: something else on the disk needs the
// room more. It returns how many bytes that gave.
func (s *Server) Shed(want int64) int64 {
	store := s.room.Load()
	if store == nil {
		return 0
	}
	before := store.Stats().Bytes
	store.Shed(want)
	return max(0, int64(before)-int64(store.Stats().Bytes))
}

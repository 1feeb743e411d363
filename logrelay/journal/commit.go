package journal

// Done tells whether the write that takes the lines has ended, and with which
// error, as Wait does; it does not block.
func (c Commit) Done() (ended bool, err error) {
	if c.group == nil {
		return true, nil // no lines
	}
	select {
	case <-c.group.done:
		return true, c.group.err
	default:
		return false, nil
	}
}

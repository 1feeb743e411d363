package state

// UserEvent is a word that somebody gave to the gossip. It is told to the
// members that live, in no order and perhaps not to all, and is kept nowhere;
// the type is here so that discovery and the API need not know each other.
type UserEvent struct {
	ID      string // UUID
	Name    string
	Payload []byte
	// The filters are regular expressions (RE2): a node takes the event when
	// its name, one of its services, and a tag of that service match; an
	// empty one matches. TagFilter needs ServiceFilter.
	NodeFilter, ServiceFilter, TagFilter string

	LTime uint64 // Lamport time at which this node heard it
}

// KeyringStatus tells which gossip keys (base64) the living members hold.
type KeyringStatus struct {
	Nodes   int               // members asked
	Keys    map[string]int    // on how many of them each key is known
	Primary map[string]int    // on how many it encrypts
	Failed  map[string]string // by member: why it did not do what was asked
}

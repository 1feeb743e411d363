package discovery

// GossipKeys gives the keys with which the gossip of a node is encrypted now, the
// one that encrypts first: those of its data directory or, when they were never
// changed while the cluster ran, configured, the key of the PKI directory. nil: the
// gossip is not encrypted. The agent may run or not.
func GossipKeys(dataDir string, configured []byte) ([][]byte, error) {
	ring, err := loadKeyring(dataDir, configured)
	if ring == nil || err != nil {
		return nil, err
	}
	return ring.GetKeys(), nil
}

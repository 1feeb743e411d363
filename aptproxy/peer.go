package aptproxy

import (
	"net/http"
	"net/netip"
	"slices"

	"holdfast/cluster"
)

// peerPath is where nodes ask each other for what a hash is of. Only what is in
// the store is given, so that nothing goes round in circles; and since the hash
// is verified by who asks, a peer needs no more trust than a mirror.
const peerPath = "/holdfast/blob"

// peersOf are the other nodes of the cluster that serve packages.
func peersOf(file *cluster.File, self string) (list []*mirror) {
	for _, node := range file.Nodes {
		if node.Name == self || !slices.Contains(file.Role(node.Role).Run, "apt") {
			continue
		}
		at := netip.AddrPortFrom(node.Addresses[file.Main().Name], Port)
		list = append(list, &mirror{base: target{host: at.String(), path: peerPath}})
	}
	return list
}

// wantOf is a file of a repository, to be fetched.
func (s *Server) wantOf(r *repository, v vouched, paths []string) want {
	return want{sum: v.sum, size: v.size, paths: paths, mirror: r.mirrors, peers: s.active.Load().peers}
}

// servePeer gives another node a blob.
func (s *Server) servePeer(w http.ResponseWriter, r *http.Request, hash string) {
	sum, err := parseHex(hash)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Etag", etag(sum))
	if !s.serveBlob(w, r, sum) {
		clearBody(w.Header())
		http.Error(w, "not here", http.StatusNotFound)
	}
}

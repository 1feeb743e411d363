package main

import "testing"

// testAptDiscovery publishes the proxy as auto-apt-proxy looks for it: by
// apt-helper srv-lookup _apt_proxy._tcp.DOMAIN.
func (n *node) testAptDiscovery(t *testing.T) {
	n.expect(t, exitOK, "added _apt_proxy._tcp.hpc.example.com.", "dns", "record", "add", "_apt_proxy._tcp", "SRV", "0 0 3142 apt.service.virtual.")
	n.until(t, "the record is served", func() bool {
		_, status := n.run(t, "", "dns", "query", "_apt_proxy._tcp.hpc.example.com", "SRV")
		return status == exitOK
	})
	n.expect(t, exitOK, "SRV 0 0 3142 apt.service.virtual.", "dns", "query", "_apt_proxy._tcp.hpc.example.com", "SRV")
}

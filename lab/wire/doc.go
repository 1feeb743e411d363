// Package wire sees and makes what goes over a network of the lab, below what
// daemons say about themselves: who advertises a virtual router, who answers
// ARP and neighbour solicitations for an address, and whose answer a client's
// ping gets. check.go judges what was recorded, without a socket or a clock.
package wire

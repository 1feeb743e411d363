// Package vrrp moves virtual IP addresses between nodes: VRRP version 3
// (RFC 9568) for IPv4 and IPv6, and version 2 (RFC 3768) for sites that still
// run it. It needs no quorum, no store and no other process.
//
// machine.go is the pure core: events and a time in, actions out. service.go
// is the task around it.
package vrrp

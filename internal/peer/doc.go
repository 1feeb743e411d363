// Package peer holds what nodes trust each other by: the cluster's certificate
// authority, node certificates, and mutual TLS 1.3 between like units of
// different nodes.
package peer

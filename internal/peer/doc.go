// Package peer holds what nodes trust each other by: the cluster's certificate
// authority, node certificates, the gossip key, and mutual TLS 1.3 between
// like units of different nodes.
//
// A cluster has one authority, made once by Init on the machine of an admin.
// Issue makes a directory of files for one node or one admin; Load reads such
// a directory and hands out TLS configurations that know whom to accept. Who a
// certificate belongs to stands in it as a URI, holdfast://CLUSTER/ROLE/NAME;
// host names and addresses in it serve only clients from outside, such as curl.
//
// Every certificate is valid from 1970-01-01 on purpose: service nodes are the
// site's time source, so they must trust each other before any of them knows
// what time it is.
package peer

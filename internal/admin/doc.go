// Package admin lets the command line speak with a unit of the agent on the
// same machine: HTTP over a Unix socket, where the kernel says who asks.
//
// Server serves any http.Handler to root, to the unit's own user and to the
// users and groups it was told of; others get 403 with a sentence. The handler
// reads who asks from the request's context (PeerOf). Client is the other end.
//
// The file mode of the socket is a convenience, not the guard: access is
// decided on the credentials that the kernel took when the peer connected, so
// there is no moment between bind and chmod at which a stranger is let in.
package admin

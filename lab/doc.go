// Package lab makes hosts for tests out of Linux namespaces, on any Debian
// machine and without virtual machines.
//
// A [Lab] is a switch with any number of separate networks (bridges), and
// hosts plugged into them. A [Host] has its own network stack, host name,
// process tree, /run, /tmp, /var/log, /dev and a private writable copy of the
// machine's root, so that an installed daemon runs inside it unmodified. It
// boots in some hundred milliseconds, loses power at any moment, keeps its
// disk, and has cables to be pulled. The switch drops packets, one way or both
// ways, and cuts the networks in two.
//
// The first process of a host is the test binary itself, so its TestMain (or
// the program's main) begins with [Init]:
//
//	func TestMain(m *testing.M) {
//		if lab.Init() {
//			return
//		}
//		m.Run()
//	}
//
// Nothing of a lab has a name outside of it. Namespaces and mounts are held by
// processes and file descriptors only, so they end with the process that made
// them, also when that is killed with SIGKILL; two labs never meet, and no
// packet has a way to the machine's own networks.
//
// Only root can make a lab; [Probe] says what is missing.
package lab

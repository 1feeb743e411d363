// Package vm makes virtual machines for tests that need a kernel of their own:
// one with IPVS, an NFS server and netem, one that dies, or one whose disk
// loses what was not flushed.
//
// A [Machine] runs Debian's own kernel under QEMU's emulation in software, in
// about four seconds, on any amd64 machine. Its files are the
// host's, read-only below a memory file system: what is installed on the host
// runs in it, and nothing that it does is left. [Inside] runs a Go test in such
// a machine, where package lab makes hosts. Several machines are plugged into a
// [Wire], a switch in the test's own process, and can share a [Disk], which
// lives there too.
//
// Nothing of a machine has a name outside of the test's process: its cables are
// inherited sockets, and the kernel ends the emulator with the process that
// started it.
package vm

// Package ntp keeps a virtual machine's own clock with Holdfast and, in another
// machine beside it, with Debian's chronyd. The tests are the package's purpose.
package ntp

// Package vm makes virtual machines for tests.
package vm

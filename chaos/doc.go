// Package chaos holds what the destructive tests share: workloads that record
// what was acknowledged, and checkers that look for it afterwards. The faults
// are the lab's.
package chaos

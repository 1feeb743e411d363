// Package logs has the destructive tests of the log relay: machines that lose
// their power while lines are acknowledged.
package logs

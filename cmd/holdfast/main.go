// Command holdfast is the agent and the admin CLI.
package main

func main() {}

package main

type vipCmd struct {
	Guard vipGuardCmd `cmd:"" hidden:"" help:"Withdraw virtual addresses when the agent that started this is gone."`
}

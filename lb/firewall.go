package lb

import (
	"context"
	"path/filepath"
	"time"

	"holdfast/internal/kernel/command"
)

// restoreDir is where Debian has iptables-restore and its kin, links to either
// kind of it.
const restoreDir = "/usr/sbin"

// restore runs a program that replaces tables of iptables.
func (s *Service) restore(program string, args []string, input string) error {
	path := filepath.Join(restoreDir, program)
	runner, err := command.New(path)
	if err != nil {
		return err
	}
	_, err = runner.Run(context.Background(), command.Command{
		Argv: append([]string{path}, args...), Stdin: []byte(input), Timeout: 10 * time.Second,
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"},
	})
	return err
}

package ntpproxy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// defaultHold are services that a clock must not jump under: Slurm's timers and
// credentials, Galera's evictions, NFS leases.
func defaultHold() []string {
	return []string{"slurmctld", "slurmdbd", "slurmd", "galera", "mysql", "mariadb", "nfs"}
}

// forbidding are the services of a node, among names, that keep its clock from being
// stepped: those that the catalog has there, unless each check of one says
// that it is dead. They are sorted.
func forbidding(catalog *state.Snapshot, node string, names []string) (list []string) {
	services, _ := catalog.NodeServices(nil, node)
	checks, _ := catalog.NodeChecks(nil, node)
	for _, service := range services {
		if !slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, service.Name) }) {
			continue
		}
		dead, alive := 0, 0
		for _, check := range checks {
			switch {
			case check.ServiceID != service.ID:
			case check.Status == state.Critical:
				dead++
			default:
				alive++
			}
		}
		if (alive > 0 || dead == 0) && !slices.Contains(list, service.Name) {
			list = append(list, service.Name)
		}
	}
	slices.Sort(list)
	return list
}

// heldBy are the services that live here and keep the clock from being stepped.
func (s *Server) heldBy() []string {
	if s.state == nil {
		return nil
	}
	return forbidding(s.state.Snapshot(), s.config.Node, s.settings.Load().hold)
}

// conditionHeld: the clock would be stepped, but a service forbids it.
const conditionHeld = "ntp.step_held"

// sayHeld tells in a condition that a step is held, and what to do.
func (k *keeper) sayHeld(by []string) {
	off := k.core.Held()
	if off == 0 {
		k.server.board.Clear(conditionHeld)
		k.spoken.over(conditionHeld)
		return
	}
	if !k.spoken.due(conditionHeld, strings.Join(by, ","), k.server.elapsed()) {
		return
	}
	k.server.board.Raise(conditionHeld, health.Error, fmt.Sprintf(
		"the clock is off by about %v and is not stepped, since on this node live: %s; it is slewed by at most %v a second instead (ntp.slew). Stop them, or say `holdfast ntp step --force`",
		roughly(off), strings.Join(by, ", "), time.Duration(k.set.slew*float64(time.Second))))
}

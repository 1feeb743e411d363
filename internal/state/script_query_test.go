package state

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// ask carries out a query of a script:
//
//	nodes, node NAME, names, instances SERVICE, node-services NODE,
//	node-checks NODE, service-checks SERVICE, checks [STATUS], entry KEY,
//	entries [PREFIX], document KIND KEY, documents KIND,
//	session ID, sessions, node-sessions NODE,
//	healthy SERVICE [only-passing], cluster, members, delays
//
// The last four have no index of their own.
func ask(t *testing.T, s *Snapshot, ws WatchSet, q line) ([]string, uint64) {
	t.Helper()
	switch q.verb {
	case "nodes":
		rows, index := s.Nodes(ws)
		return show(rows, showNode), index
	case "node":
		row, index := s.Node(ws, q.word(0))
		return showOne(row, showNode), index
	case "names":
		names, index := s.ServiceNames(ws)
		return show(slices.Sorted(maps.Keys(names)), func(n string) string {
			return fmt.Sprintf("%s %v", n, names[n])
		}), index
	case "instances":
		rows, index := s.Instances(ws, q.word(0))
		return show(rows, showInstance), index
	case "node-services":
		rows, index := s.NodeServices(ws, q.word(0))
		return show(rows, showService), index
	case "node-checks":
		rows, index := s.NodeChecks(ws, q.word(0))
		return show(rows, showCheck), index
	case "service-checks":
		rows, index := s.ServiceChecks(ws, q.word(0))
		return show(rows, showCheck), index
	case "checks":
		rows, index := s.Checks(ws, Status(q.word(0)))
		return show(rows, showCheck), index
	case "entry":
		row, index := s.Entry(ws, q.word(0))
		return showOne(row, showEntry), index
	case "entries":
		rows, index := s.Entries(ws, q.word(0))
		return show(rows, showEntry), index
	case "session":
		row, index := s.Session(ws, q.word(0))
		return showOne(row, showSession), index
	case "sessions":
		rows, index := s.Sessions(ws)
		return show(rows, showSession), index
	case "node-sessions":
		rows, index := s.NodeSessions(ws, q.word(0))
		return show(rows, showSession), index
	case "document":
		row, index := s.Document(ws, q.word(0), q.word(1))
		return showOne(row, showDocument), index
	case "documents":
		rows, index := s.Documents(ws, q.word(0))
		return show(rows, showDocument), index
	}
	return askLocal(t, s, q), s.Index()
}

func askLocal(t *testing.T, s *Snapshot, q line) []string {
	switch q.verb {
	case "healthy":
		all, _ := s.Instances(nil, q.word(0))
		return show(s.Healthy(all, q.word(1) == "only-passing"), func(i Instance) string { return showService(i.Service) })
	case "cluster":
		return showOne(s.Cluster(), func(c *Cluster) string {
			return fmt.Sprintf("%s %s feature=%d [%d/%d]", c.ID, c.Name, c.Feature, c.CreateIndex, c.ModifyIndex)
		})
	case "delays":
		return show(s.LockDelays(), func(d *LockDelay) string { return fmt.Sprintf("%s %s since %d", d.Key, d.Delay, d.Index) })
	case "members":
		return show(s.Members(), func(m Member) string { return fmt.Sprintf("%s %s", m.Name, m.Liveness) })
	}
	t.Fatalf("script: %s", q)
	return nil
}

func show[T any](rows []T, one func(T) string) []string {
	var out []string
	for _, r := range rows {
		out = append(out, one(r))
	}
	return out
}

func showOne[T any](row *T, one func(*T) string) []string {
	if row == nil {
		return []string{"none"}
	}
	return []string{one(row)}
}

func showNode(n *Node) string {
	return compact("%s %s id=%s%s [%d/%d]", n.Name, n.Address, n.ID, showMeta(n.Meta), n.CreateIndex, n.ModifyIndex)
}

func showService(s *Service) string {
	addr, weights := "", ""
	if s.Address.IsValid() {
		addr = s.Address.String()
	}
	if s.Weights != (Weights{}) {
		weights = fmt.Sprintf("%d,%d", s.Weights.Passing, s.Weights.Warning)
	}
	return compact("%s/%s name=%s addr=%s port=%d tags=%s weights=%s%s [%d/%d]", s.Node, s.ID, s.Name, addr, s.Port,
		strings.Join(s.Tags, ","), weights, showMeta(s.Meta), s.CreateIndex, s.ModifyIndex)
}

func showCheck(c *Check) string {
	service := c.ServiceID
	if service != "" {
		service += "(" + c.ServiceName + ")"
	}
	return compact("%s/%s %s service=%s tags=%s output=%s [%d/%d]", c.Node, c.ID, c.Status, service,
		strings.Join(c.ServiceTags, ","), c.Output, c.CreateIndex, c.ModifyIndex)
}

func showInstance(i Instance) string {
	var checks []string
	for _, c := range i.Checks {
		checks = append(checks, showCheck(c))
	}
	return fmt.Sprintf("%s at %s: %s\n  on %s\n  with %s", i.Status(), i.Addr(), showService(i.Service), showNode(i.Node),
		strings.Join(checks, "\n   and "))
}

func showEntry(e *Entry) string {
	return compact("%s=%q flags=%d lock=%d session=%s [%d/%d]", printable(e.Key), e.Value, e.Flags, e.LockIndex, e.Session, e.CreateIndex, e.ModifyIndex)
}

// showSession leaves out the renewals, which are no part of an answer.
func showSession(s *Session) string {
	ttl, delay := "", ""
	if s.TTL > 0 {
		ttl = s.TTL.String()
	}
	if s.LockDelay > 0 {
		delay = s.LockDelay.String()
	}
	return compact("%s on %s name=%s checks=%s services=%s %s ttl=%s delay=%s [%d/%d]", s.ID, s.Node, s.Name,
		strings.Join(s.NodeChecks, ","), strings.Join(s.ServiceChecks, ","), s.Behavior, ttl, delay, s.CreateIndex, s.ModifyIndex)
}

// printable quotes what a script could not show.
func printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}

func showDocument(d *Document) string {
	return fmt.Sprintf("%s/%s=%q [%d/%d]", d.Kind, d.Key, d.Value, d.CreateIndex, d.ModifyIndex)
}

func showMeta(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, " meta.%s=%s", k, m[k])
	}
	return b.String()
}

// compact is Sprintf without the name=value words that have no value, or 0.
func compact(format string, args ...any) string {
	words := strings.Split(fmt.Sprintf(format, args...), " ")
	return strings.Join(slices.DeleteFunc(words, func(w string) bool {
		return strings.HasSuffix(w, "=") || strings.HasSuffix(w, "=0")
	}), " ")
}

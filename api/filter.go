package api

import (
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/go-bexpr"

	"holdfast/internal/state"
)

// Bounds of a filter. The parser looks ahead, and takes a time that is
// exponential in how deep parentheses lie.
const (
	maxFilter            = 2 << 10 // bytes
	maxFilterExpressions = 10_000  // steps of the parser
)

// filterable lists the paths whose answers ?filter chooses from, as Consul's
// do: an element is in the answer when the expression is true of its JSON.
func filterable(path string) bool {
	return slices.Contains([]string{
		"/v1/agent/services", "/v1/agent/checks", "/v1/agent/members",
		"/v1/catalog/nodes", "/v1/catalog/services", "/v1/catalog/service/", "/v1/catalog/node/", "/v1/catalog/node-services/",
		"/v1/health/service/", "/v1/health/node/", "/v1/health/checks/", "/v1/health/state/",
	}, path)
}

// filter is a request's ?filter; nil keeps everything.
type filter struct {
	eval *bexpr.Evaluator
	err  error // the first of an evaluation: a name that elements of this path don't have
}

// parseFilter reads ?filter for a path.
func parseFilter(expression, path string) (*filter, error) {
	switch {
	case expression == "":
		return nil, nil
	case !filterable(path):
		return nil, fault(http.StatusBadRequest, "Invalid query parameter: \"filter\" is not offered here")
	case len(expression) > maxFilter:
		return nil, fault(http.StatusBadRequest, "Invalid filter: it has %d bytes; at most %d", len(expression), maxFilter)
	}
	eval, err := bexpr.CreateEvaluator(expression, bexpr.WithMaxExpressions(maxFilterExpressions))
	if err != nil {
		return nil, fault(http.StatusBadRequest, "Failed to create boolean expression evaluator: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return &filter{eval: eval}, nil
}

// keep tells whether the expression is true of an element.
func (f *filter) keep(element any) bool {
	if f == nil {
		return true
	}
	is, err := f.eval.Evaluate(element)
	if err != nil && f.err == nil {
		f.err = fault(http.StatusBadRequest, "Invalid filter: %v", err)
	}
	return err == nil && is
}

// failed is the error of an evaluation.
func (f *filter) failed() error {
	if f == nil {
		return nil
	}
	return f.err
}

// kept chooses the elements of a list. It changes it.
func kept[T any](f *filter, all []T) []T {
	if f == nil {
		return all
	}
	return slices.DeleteFunc(all, func(element T) bool { return !f.keep(element) })
}

// keptIn chooses the elements of a map. It changes it.
func keptIn[T any](f *filter, all map[string]T) map[string]T {
	for id, element := range all {
		if !f.keep(element) {
			delete(all, id)
		}
	}
	return all
}

// filteredServices is what catalog/services answers for a filter: the names of
// the instances of which it is true, with the tags of these. It moves with
// every instance, since any of them may come into the answer.
func (s *Server) filteredServices(c *call, snap *state.Snapshot, ws state.WatchSet) answer {
	names, index := snap.ServiceNames(ws)
	found := map[string][]string{}
	for name := range names {
		instances, moved := snap.Instances(ws, name)
		index = max(index, moved)
		for _, i := range instances {
			if !c.wants(i) || !c.filter.keep(s.catalogServiceOf(i)) {
				continue
			}
			tags := append(list(found[name]), i.Service.Tags...)
			slices.Sort(tags)
			found[name] = slices.Compact(tags)
		}
	}
	return answer{value: found, index: index}
}

// replyKept answers with what a filter kept, or with why it could not.
func (s *Server) replyKept(c *call, v any) error {
	if err := c.filter.failed(); err != nil {
		return err
	}
	return s.reply(c, v)
}

package discovery

import (
	"errors"
	"fmt"
	"slices"

	"holdfast/cluster"
	"holdfast/internal/check"
	"holdfast/internal/state"
)

// ServicesFrom makes the definitions of the services that the cluster file
// puts on a node. A service's ID is its name. Errors are cluster.Errors with
// positions.
func ServicesFrom(f *cluster.File, node string) ([]ServiceDefinition, error) {
	n := f.Node(node)
	if n == nil {
		return nil, fmt.Errorf("discovery: node %q is not in the cluster file", node)
	}
	address := n.Addresses[f.Main().Name]
	var definitions []ServiceDefinition
	var wrong cluster.Errors
	for _, s := range f.ServicesOn(node) {
		target := check.Target{Service: s.Name, Address: address, Port: s.Port, Catalog: true}
		if s.Address.IsValid() {
			target.Address = s.Address
		}
		checks, err := check.Decode(s.Check, target)
		if err != nil {
			wrong = append(wrong, located(s, err)...)
			continue
		}
		definition, err := prepare(state.Node{Name: node, Address: address}, ServiceDefinition{
			Service: state.Service{ID: s.Name, Name: s.Name, Tags: slices.Clone(s.Tags), Address: s.Address, Port: s.Port},
			Checks:  checks,
		})
		if err != nil {
			wrong = append(wrong, located(s, err)...)
			continue
		}
		definitions = append(definitions, definition)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return definitions, nil
}

// ValidateServices checks every service of the cluster file, each mistake
// once, though a service may be on many nodes.
func ValidateServices(f *cluster.File) error {
	var wrong cluster.Errors
	seen := map[string]bool{}
	for _, n := range f.Nodes {
		_, err := ServicesFrom(f, n.Name)
		var many cluster.Errors
		if !errors.As(err, &many) {
			continue
		}
		for _, one := range many {
			if text := one.Error(); !seen[text] {
				seen[text] = true
				wrong = append(wrong, one)
			}
		}
	}
	if len(wrong) > 0 {
		return wrong
	}
	return nil
}

// located gives an error about a service a place in the file.
func located(s cluster.Service, err error) cluster.Errors {
	var many cluster.Errors
	if errors.As(err, &many) {
		return many
	}
	return cluster.Errors{s.Check.Errorf("", "service %s: %s", s.Name, flat(err))}
}

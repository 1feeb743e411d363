package bench

import "slices"

// Quantity is one thing that is measured.
type Quantity struct {
	Name   string
	Unit   string
	Better string // "higher" or "lower"
}

// Higher is a quantity of which more is better.
func Higher(name, unit string) Quantity { return Quantity{name, unit, "higher"} }

// Lower is one of which less is better.
func Lower(name, unit string) Quantity { return Quantity{name, unit, "lower"} }

// Samples are what was measured of several programs, a value a round.
type Samples struct {
	order  []Quantity
	values map[Quantity]map[string][]float64 // by program
}

// NewSamples has none yet. The results of these quantities come in this order,
// and before those of others, which come as they were first measured.
func NewSamples(order ...Quantity) *Samples {
	return &Samples{order: order, values: map[Quantity]map[string][]float64{}}
}

// Add adds a sample of a program.
func (s *Samples) Add(q Quantity, program string, value float64) {
	if !slices.Contains(s.order, q) {
		s.order = append(s.order, q)
	}
	if s.values[q] == nil {
		s.values[q] = map[string][]float64{}
	}
	s.values[q][program] = append(s.values[q][program], value)
}

// Note is Add for a quantity that NewSamples was given, by its name.
func (s *Samples) Note(name, program string, value float64) {
	s.Add(s.order[slices.IndexFunc(s.order, func(q Quantity) bool { return q.Name == name })], program, value)
}

// Results sum up what was measured of ours and of the others. What was not
// measured at all is left out.
func (s *Samples) Results(ours string) (list []Result) {
	for _, q := range s.order {
		if len(s.values[q]) == 0 {
			continue
		}
		r := Result{Name: q.Name, Unit: q.Unit, Better: q.Better, Peers: map[string]Figures{}, Ratios: map[string]Figures{}}
		for program, values := range s.values[q] {
			sum := Sum(values)
			r.Runs = max(r.Runs, len(values))
			if program == ours {
				r.Ours = &sum
				continue
			}
			r.Peers[program] = sum
			if ratios := ratios(s.values[q][ours], values); len(ratios) > 0 {
				r.Ratios[program] = Sum(ratios)
			}
		}
		list = append(list, r)
	}
	return list
}

// ratios are those of the rounds that both have; there is none by zero.
func ratios(ours, theirs []float64) (list []float64) {
	for i := range min(len(ours), len(theirs)) {
		if theirs[i] != 0 {
			list = append(list, ours[i]/theirs[i])
		}
	}
	return list
}

package cluster

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Fold writes names as a node set, as short as ClusterShell writes it:
// "fbservice[1-4],r[1-2]n[01-04]". The set is sorted and each name counts
// once; Expand gives the same names back, as long as they hold none of the
// set syntax's own characters.
func Fold(names []string) string {
	byShape := map[string][]folded{}
	for _, name := range newNodes(names).list() {
		shape, numbers := dissect(name)
		byShape[shape] = append(byShape[shape], folded{fixed: numbers})
	}
	shapes := make([]string, 0, len(byShape))
	for shape := range byShape {
		shapes = append(shapes, shape)
	}
	slices.Sort(shapes)
	var parts []string
	for _, shape := range shapes {
		parts = append(parts, foldShape(shape, byShape[shape])...)
	}
	return strings.Join(parts, ",")
}

// hole stands for a number in a shape. It cannot occur in a name.
const hole = "\x00"

// folded is a box of names of one shape: the product of its dimensions. A
// dimension is the text that stands between brackets, or one number.
type folded struct{ fixed []string }

// dissect parts a name into its shape and the numbers that stand in it.
// A number too long for Expand belongs to the shape.
func dissect(name string) (shape string, numbers []string) {
	var b strings.Builder
	for i := 0; i < len(name); {
		end := i
		for end < len(name) && name[end] >= '0' && name[end] <= '9' {
			end++
		}
		switch {
		case end == i:
			b.WriteByte(name[i])
			end++
		case end-i > maxDigits:
			b.WriteString(name[i:end])
		default:
			b.WriteString(hole)
			numbers = append(numbers, name[i:end])
		}
		i = end
	}
	return b.String(), numbers
}

// foldShape joins the boxes of one shape that differ in a single dimension,
// from the last dimension to the first.
func foldShape(shape string, boxes []folded) []string {
	dimensions := strings.Count(shape, hole)
	for d := dimensions - 1; d >= 0; d-- {
		boxes = joinDimension(boxes, d)
	}
	slices.SortFunc(boxes, func(a, b folded) int {
		return slices.CompareFunc(a.fixed, b.fixed, compareNumbers)
	})
	parts := make([]string, 0, len(boxes))
	for _, box := range boxes {
		parts = append(parts, box.write(shape))
	}
	return parts
}

func joinDimension(boxes []folded, d int) []folded {
	groups := map[string]int{}
	var members [][]string
	var joined []folded
	for _, box := range boxes {
		key := strings.Join(box.fixed[:d], hole) + hole + hole + strings.Join(box.fixed[d+1:], hole)
		at, ok := groups[key]
		if !ok {
			at = len(joined)
			groups[key] = at
			joined = append(joined, folded{fixed: slices.Clone(box.fixed)})
			members = append(members, nil)
		}
		members[at] = append(members[at], box.fixed[d])
	}
	for i := range joined {
		joined[i].fixed[d] = foldNumbers(members[i])
	}
	return joined
}

// foldNumbers writes numbers as a list of ranges: "1-4,7" or "001-512".
func foldNumbers(numbers []string) string {
	slices.SortFunc(numbers, compareNumbers)
	var runs []*run
	waiting := map[string]*run{} // by the number that would lengthen the run
	for _, number := range numbers {
		r := waiting[number]
		if r != nil {
			delete(waiting, number)
			r.last = number
		} else {
			r = &run{first: number, last: number}
			runs = append(runs, r)
		}
		next, ok := r.next()
		if !ok {
			continue
		}
		if other := waiting[next]; other == nil || padded(r.first) {
			waiting[next] = r
		}
	}
	parts := make([]string, 0, len(runs))
	for _, r := range runs {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, ",")
}

type run struct{ first, last string }

func (r *run) String() string {
	if r.first == r.last {
		return r.first
	}
	return r.first + "-" + r.last
}

// next is the number that would lengthen the run; a padded run ends where its
// width does.
func (r *run) next() (string, bool) {
	n, err := strconv.ParseInt(r.last, 10, 64)
	if err != nil {
		return "", false
	}
	if !padded(r.first) {
		return strconv.FormatInt(n+1, 10), true
	}
	text := strconv.FormatInt(n+1, 10)
	if len(text) > len(r.first) {
		return "", false
	}
	return strings.Repeat("0", len(r.first)-len(text)) + text, true
}

// compareNumbers orders by value, then by width; a range counts as its first
// number.
func compareNumbers(a, b string) int {
	return cmp.Or(cmp.Compare(leadingNumber(a), leadingNumber(b)), cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

func leadingNumber(s string) int64 {
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	n, _ := strconv.ParseInt(s[:end], 10, 64) // digits, at most maxDigits
	return n
}

// write puts the dimensions into the shape; what is more than one number
// stands in brackets.
func (f folded) write(shape string) string {
	var b strings.Builder
	for i, literal := range strings.Split(shape, hole) {
		if i > 0 {
			number := f.fixed[i-1]
			if strings.ContainsAny(number, "-,") {
				number = "[" + number + "]"
			}
			b.WriteString(number)
		}
		b.WriteString(literal)
	}
	return b.String()
}

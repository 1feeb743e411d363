package discipline
import ("testing";"fmt")
func TestDbg(t *testing.T) {
 for _, n := range []string{"lan","wan"} {
	mk := lan
	if n=="wan" { mk = wan }
	w := newWorld(t, 1, mk(), mk(), mk())
	w.start(Config{})
	for i := range 12 {
		f := w.watch(w.now + 2*hour)
		s := w.core.Sources(w.reading())[0]
		fmt.Println(n, i, "rms", f.rms()*1e6, "freq", f.frequency()*1e6, "poll", s.Poll, "used", s.Samples, "skew", s.Skew*1e6, "res", w.core.sources[0].register.line.residual*1e6, "surp", w.core.sources[0].surprise, "state", s.State, "var", w.core.variance)
	}
 }
}

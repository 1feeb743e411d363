package discipline

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Config is how a clock is disciplined. The zero value of a field stands for
// its default.
type Config struct {
	Sources []SourceConfig
	// Agreeing is how many sources must survive before the clock is touched; 1.
	Agreeing int
	// A clock that is further off than StepOver, or than Panic, is stepped, in
	// the first StepUpdates updates, and never after; 100 ms, 3.
	StepOver    time.Duration
	StepUpdates int
	// Panic is the offset above which nothing is done but complain, once the
	// first updates are over; 1000 s.
	Panic time.Duration
	// Growth is how fast root dispersion grows without sources, beyond what
	// the frequency's own uncertainty explains, in seconds per second; 1e-6.
	Growth float64
	// Slew is how much faster or slower than it should the clock runs at most
	// to get rid of an offset, as a ratio, MinSlew to MaxSlew; DefaultSlew.
	Slew float64
	// Orphan is the stratum that the leader of a cluster without any source
	// serves; 0: without a source the node only runs on by itself (Alone).
	Orphan uint8
	// Leap is what is made of leap seconds, and Shape how one is smeared.
	Leap  LeapMode
	Shape Shape
	// Frequency and Skew are what the drift file holds: the oscillator's
	// correction and its standard error, as a ratio. Skew 0: not known.
	Frequency, Skew float64
}

// Limits.
const (
	maxDistance  = 1500 * time.Millisecond // of a source (MAXDIST is 1 s; a slow link more)
	maxFrequency = 500e-6                  // the kernel's
	unknownSkew  = 100e-6                  // of an oscillator never seen
	wander       = 1e-9                    // of its frequency, in 1/sqrt(s): what a board's crystal does
)

// ErrPanic: all sources agree that the clock is off by more than is corrected
// without an admin's word.
var ErrPanic = errors.New("discipline: the clock is too far off")

// Adjustment is what the kernel is to be told. It is complete: applied again,
// it changes nothing.
type Adjustment struct {
	Frequency float64       // of the clock against the bare oscillator, as a ratio
	Slew      time.Duration // to be worked off smoothly, at 500 µs a second at most, in place of what is left of the last; while healing, a part
	Fast      time.Duration // likewise, a quarter of what is left each second, -500 ms to 500 ms; the next Adjustment takes back what is too much
	Step      time.Duration // at once; Slew and Fast are 0 then
	Leap      Leap
	MaxError  time.Duration
	EstError  time.Duration
}

// Actions are what is to be done.
type Actions struct {
	Ask    []int       // these sources, now
	Adjust *Adjustment // nil: nothing new
	Next   time.Duration
	// Err is ErrPanic, wrapped with how far it is off. With an Adjust, the clock
	// goes on without those that are so far away.
	Err error
}

// Core is the state of the discipline of one clock.
type Core struct {
	config  Config
	epoch   time.Time
	sources []*source
	fresh   bool // a sample came since the last Step
	states  []State

	updates   int
	frequency float64
	variance  float64       // of frequency
	at        time.Duration // raw time of the last update; 0 none
	target    line          // true time over the oscillator, as of the last update
	leading   int           // -1 none
	vacant    bool          // the source that led was taken out, and no other does yet
	rootDelay time.Duration
	rootDisp  time.Duration // at `at`
	leap      leaping
	allowStep bool          // by command
	forced    bool          // likewise, whatever lives here
	allowTill time.Duration // raw time at which that lapses; 0: from the next Step on
	panicked  bool          // the last word of the sources was too far off to be followed
	away      time.Duration // how far off those are that would be followed else; 0: none are
	toldAt    time.Duration // raw time of the last Adjustment
	hold      bool          // nothing is to be stepped
	held      time.Duration // what is left of an offset that would have been stepped
	lastStep  time.Duration // raw time

	pending pending // that the kernel has yet to work off
	fast    bool    // more than the slow way does
	told    int64   // half of the clock's time when the kernel was told of that

	phase    Phase
	votedAt  time.Duration // raw time at which those that the phase stands on had a majority
	leader   int           // Self, Nobody or a source's index
	selfAt   time.Duration // raw time since which it is Self; negative: it is not
	healing  bool
	healedAt time.Duration // raw time of the last correction while healing
	walk     time.Duration // offset with which the walk home began
	walkAt   time.Duration // raw time of that; 0: it has yet to begin
}

// New makes a Core; its sources are asked from now on.
func New(config Config, now Reading) *Core {
	config.Agreeing = max(config.Agreeing, 1)
	if config.StepOver == 0 {
		config.StepOver = 100 * time.Millisecond
	}
	if config.StepUpdates == 0 {
		config.StepUpdates = 3
	}
	if config.Panic == 0 {
		config.Panic = 1000 * time.Second
	}
	if config.Growth == 0 {
		config.Growth = 1e-6
	}
	if config.Slew == 0 {
		config.Slew = DefaultSlew
	}
	if config.Skew == 0 {
		config.Frequency, config.Skew = 0, unknownSkew
	}
	c := &Core{
		config: config, epoch: now.Clock.Add(-now.Raw).Round(0), leading: -1, leader: Nobody,
		votedAt: now.Raw, selfAt: -1,
		frequency: config.Frequency, variance: config.Skew * config.Skew,
		states: make([]State, len(config.Sources)), pending: pending{second: now.Clock.Unix()},
	}
	for _, s := range config.Sources {
		c.sources = append(c.sources, &source{config: s, poll: s.MinPoll, next: now.Raw})
	}
	return c
}

// Sample takes a source's answer. Step acts upon it.
func (c *Core) Sample(source int, s Sample) {
	if c.atLeap(s.Raw) {
		c.sources[source].answered()
		return
	}
	if c.sources[source].config.Peer {
		s.Server = c.unsmear(s.Server)
	}
	c.sources[source].took(c.epoch, s)
	c.judgeLeap(c.sources[source], s.Raw)
	c.fresh = c.fresh || c.eligible(source)
}

// Refused notes a kiss of death (RFC 5905 §7.4). A source that wants to be
// asked more rarely (RATE) is asked in no burst any more, then a quarter as
// often each time. One that does not want to be asked at all (denied: DENY,
// RSTR) is lost, and asked as rarely as a source ever is on account of that.
func (c *Core) Refused(source int, denied bool) {
	s := c.sources[source]
	s.refused(denied)
	s.next = max(s.next, c.lastStep+Interval(s.poll))
}

// Forget drops what was learned of a source: it is another server from now on,
// and is asked in a burst. The request that it answered first counts.
func (c *Core) Forget(source int) {
	s := c.sources[source]
	s.renew()
	s.next = min(s.next, c.lastStep+s.pause())
}

// AllowStep lets the next update step the clock, however far: an admin said so.
// forced does so even while steps are held. It lapses when nothing comes within
// 10 minutes: nobody waits for a step that comes days later.
func (c *Core) AllowStep(forced bool) {
	c.allowStep, c.forced, c.allowTill, c.fresh = true, forced, 0, true
}

// permission is how long an admin's word lasts.
const permission = 10 * time.Minute

// lapse ends an admin's word in time.
func (c *Core) lapse(raw time.Duration) {
	switch {
	case !c.allowStep:
	case c.allowTill == 0:
		c.allowTill = raw + permission
	case raw >= c.allowTill:
		c.allowStep, c.forced = false, false
	}
}

// HoldSteps says whether what lives on this machine forbids steps: what would be
// stepped is slewed then.
func (c *Core) HoldSteps(hold bool) { c.hold = hold }

// Held is what is left of an offset that would have been stepped; 0 none.
func (c *Core) Held() time.Duration { return c.held }

// Step says what is to be done at a moment, and when to come again.
func (c *Core) Step(now Reading) (a Actions) {
	a.Next = now.Raw + time.Hour
	c.lastStep = now.Raw
	c.lapse(now.Raw)
	for i, s := range c.sources {
		s.expire(now.Raw)
		if now.Raw >= s.next {
			s.ask(now.Raw)
			a.Ask = append(a.Ask, i)
		}
		a.Next = min(a.Next, s.due())
	}
	if c.at != 0 {
		c.passLeap(now.Raw)
		c.foresee(c.utc(now.Raw))
	}
	c.rejoin(now.Raw)
	c.orient(now, &a)
	if c.fresh || len(a.Ask) > 0 {
		var err error
		if a.Adjust, err = c.choose(now); err != nil {
			a.Err = err
		}
	}
	c.heal(now, &a)
	c.leapOn(now, &a)
	c.slewOn(now, &a)
	c.keepUp(now, &a)
	return a
}

// choose takes the sources' word, if there is a new one.
func (c *Core) choose(now Reading) (*Adjustment, error) {
	sel := elect(c.sources, c.eligible, now.Raw, maxDistance)
	c.states = sel.states
	if !c.fresh || c.atLeap(now.Raw) {
		return nil, nil
	}
	c.fresh = false
	if len(sel.survivors) < c.enough(c.phase) || c.at == 0 && !c.settled() {
		return nil, nil
	}
	return c.update(now, sel.survivors)
}

// settled tells whether all sources have had their chance.
func (c *Core) settled() bool {
	return !slices.ContainsFunc(c.sources, func(s *source) bool { return !s.settled() })
}

// update moves the model, and says how the clock gets there.
func (c *Core) update(now Reading, survivors []candidate) (*Adjustment, error) {
	combined := c.combine(now.Raw, survivors)
	utc := c.epoch.Add(now.Raw + combined.ahead)
	c.vote(survivors)
	if c.at == 0 {
		c.foresee(utc)
	}
	smeared, _ := c.smeared(utc)
	offset := utc.Add(smeared).Sub(now.Clock)
	step := c.stepsOver(offset) && (c.updates < c.config.StepUpdates || c.allowStep)
	switch {
	case step && c.hold && !c.forced:
		step, c.held = false, offset
	case c.held != 0 && !step && offset.Abs() > c.config.StepOver:
		c.held = offset // still on its way
	default:
		c.held = 0
	}
	if offset.Abs() > c.config.Panic && !step {
		c.panicked = true
		return nil, c.tooFar(offset)
	}
	if step { // it is at home: nothing is left to be walked
		c.healing, c.walkAt = false, 0
	}
	c.allowStep, c.forced, c.panicked = false, false, false
	c.learn(now.Raw, combined)
	c.target = combined
	c.target.frequency = c.frequency
	c.at = now.Raw
	c.updates++
	best := c.sources[survivors[0].index]
	c.leading, c.vacant = survivors[0].index, false
	c.rootDelay = best.last.RootDelay + best.register.line.leastWay
	c.rootDisp = best.last.Dispersion + seconds(combined.deviation+best.register.line.residual) + best.last.Precision
	return c.adjust(now, step), nil
}

// stepsOver tells whether an offset is one that is stepped, when steps are
// allowed. What is too far to be slewed is, too.
func (c *Core) stepsOver(offset time.Duration) bool {
	return offset.Abs() > min(c.config.StepOver, c.config.Panic)
}

// tooFar is ErrPanic with what is off, to the second: said anew each time, it
// should not read like news.
func (c *Core) tooFar(offset time.Duration) error {
	return fmt.Errorf("%w: by %v, and more than %v is only corrected by `holdfast ntp step`", ErrPanic, offset.Round(time.Second), c.config.Panic)
}

// adjust brings the clock to where the model has it, by a step or smoothly.
func (c *Core) adjust(now Reading, step bool) *Adjustment {
	utc, offset := c.utc(now.Raw), c.offset(now)
	c.toldAt = now.Raw
	_, rate := c.smeared(utc)
	c.leap.rate, c.leap.rateAt, c.leap.kernel = rate, now.Raw, c.forKernel(utc)
	a := &Adjustment{
		Frequency: c.frequency + rate, Leap: c.leap.kernel,
		EstError: seconds(c.target.deviation), MaxError: c.Dispersion(now.Raw) + c.rootDelay/2,
	}
	if step {
		a.Step = offset
		c.pending, c.fast = pending{second: now.Clock.Add(offset).Unix()}, false // the kernel forgets (ntp_clear())
	} else {
		a.Slew, a.Fast = c.slew(now, c.bounded(now.Raw, offset), overdrive)
	}
	return a
}

// tellEvery is how often the kernel is told at least. It counts its greatest
// error up by 500 ppm from the last time, and calls the clock unsynchronised at
// 16 s; and what it rounds adds up where nobody is heard.
const tellEvery = 4 * time.Minute

// keepUp tells the kernel again how its clock is to run when nobody said
// anything new: in a holdover, and above all where no source was ever heard. A
// step that an admin allowed brings the clock of a node without a source back
// to where it would have run by itself.
func (c *Core) keepUp(now Reading, a *Actions) {
	if c.at == 0 {
		return
	}
	back := c.allowStep && c.phase.ownTime() && c.stepsOver(c.offset(now)) && (!c.hold || c.forced)
	switch {
	case back && a.Adjust == nil && !c.atLeap(now.Raw):
		a.Adjust = c.adjust(now, true)
		c.allowStep, c.forced = false, false
	case now.Raw >= c.toldAt+tellEvery:
		c.repeat(now, a)
	}
	a.Next = min(a.Next, max(now.Raw+time.Second, c.toldAt+tellEvery))
}

// repeat tells the kernel again how its clock is to run, unless this Step says
// so already, a leap second is near, or the clock is too far off to be touched.
func (c *Core) repeat(now Reading, a *Actions) {
	switch offset := c.offset(now); {
	case a.Adjust != nil || c.panicked || c.atLeap(now.Raw):
	case offset.Abs() > c.config.Panic:
		a.Err = c.tooFar(offset)
	default:
		a.Adjust = c.adjust(now, false)
	}
}

// offset is how far the clock is behind where it is meant to be.
func (c *Core) offset(now Reading) time.Duration {
	utc := c.utc(now.Raw)
	smeared, _ := c.smeared(utc)
	return utc.Add(smeared).Sub(now.Clock)
}

// combine is the survivors' common word, each by how sure it is
// (RFC 5905 §11.2.3 weighs by root distance alone).
func (c *Core) combine(raw time.Duration, survivors []candidate) (l line) {
	first := survivors[0]
	var weights, offset, fweights, frequency float64
	for _, s := range survivors {
		own := &c.sources[s.index].register.line
		e := own.errorAt(raw) + 0.1*s.distance.Seconds() + 1e-9
		w := 1 / (e * e)
		weights, offset = weights+w, offset+w*(s.ahead-first.ahead).Seconds()
		fw := 1 / (own.skew*own.skew + 1e-24)
		fweights, frequency = fweights+fw, frequency+fw*own.frequency
	}
	l = line{ok: true, at: raw, ahead: first.ahead + seconds(offset/weights), frequency: frequency / fweights}
	l.skew = 1 / math.Sqrt(fweights)
	l.deviation = c.sources[first.index].register.line.errorAt(raw)
	return l
}

// learn takes the sources' word on the frequency, as far as it is better than
// what is known. Squares of variances: lines drawn one after the other share
// most of their samples, and say the same poor thing again and again.
func (c *Core) learn(raw time.Duration, l line) {
	if c.at != 0 {
		c.variance += wander * wander * (raw - c.at).Seconds()
	}
	s := l.skew * l.skew
	c.frequency += c.variance * c.variance / (c.variance*c.variance + s*s) * (l.frequency - c.frequency)
	c.frequency = max(-maxFrequency, min(maxFrequency, c.frequency))
	c.variance = min(c.variance, s)
}

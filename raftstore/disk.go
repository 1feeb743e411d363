package raftstore

import (
	"fmt"
	"slices"
	"time"
)

// The pure core of what is done about a disk that fails or fills: how fit the
// disk is, and whose vote is better spared.

// fitness is how fit the disk of a server's store is; the higher, the worse.
// It travels in a progress.
type fitness int

const (
	diskFit  fitness = iota
	diskLow          // it works, and little space is left
	diskSick         // it does not answer, or it errs
)

func (f fitness) String() string {
	switch f {
	case diskFit:
		return "fit"
	case diskLow:
		return "low on space"
	}
	return "sick"
}

// The watermarks. Others on the same disk give way before: the package proxy
// evicts at 1 GiB and the log relay reads no more at 5 %.
const (
	lowPercent = 3
	leastLow   = 16 << 20 // bytes
	mostLow    = 512 << 20
)

// lowWater is how much space must be left on a file system of so many bytes;
// at a quarter more it counts as being back.
func lowWater(size int64) int64 { return min(max(size/100*lowPercent, leastLow), mostLow) }

// look is what was seen of the disk.
type look struct {
	Free, Size int64  // bytes; Size 0: unknown
	Trouble    string // why a write failed or did not end; "" it was fine
}

// diskJudge tells from looks how fit the disk is. What is bad counts at once;
// what is better counts after it was so for the time calm, so that a disk that
// comes and goes does not move votes to and fro.
type diskJudge struct {
	calm time.Duration

	state  fitness
	why    string
	better time.Time // since when all looks were better than state; zero: the last was not
}

// step takes one look.
func (j *diskJudge) step(l look, now time.Time) {
	seen, why := j.judge(l)
	if seen >= j.state {
		j.state, j.why, j.better = seen, why, time.Time{}
		return
	}
	if j.better.IsZero() {
		j.better = now
	}
	if now.Sub(j.better) >= j.calm {
		j.state, j.why, j.better = seen, why, time.Time{}
	}
}

// judge is how fit the disk would be by one look alone. A disk that was low is
// so until there is a quarter more than the watermark.
func (j *diskJudge) judge(l look) (fitness, string) {
	if l.Trouble != "" {
		return diskSick, l.Trouble
	}
	mark := lowWater(l.Size)
	want := mark
	if j.state != diskFit {
		want += mark / 4
	}
	if l.Size > 0 && l.Free < want {
		return diskLow, fmt.Sprintf("%d MiB are left on the disk, and %d MiB should be", l.Free>>20, want>>20)
	}
	return diskFit, ""
}

// missing is how many bytes must become free for the disk to be fit again.
func (l look) missing() int64 { return max(0, lowWater(l.Size)+lowWater(l.Size)/4-l.Free) }

// spareUnfit takes the vote of a server whose disk is not fit, one that is sick
// before one that is low. It does so only if those with better disks are a
// majority of the voters that stay: when all disks fill at once, all keep their
// votes. The server has its place still, and gets a vote when it is fit.
func spareUnfit(v view) *change {
	for _, unfit := range []fitness{diskSick, diskLow} {
		for _, s := range v.voters() {
			if s.ID == v.Self || v.Disks[s.ID] != unfit || !v.Reachable[s.ID] {
				continue
			}
			if v.carriedWithout(s, unfit) {
				return &change{changeDemote, s, "its disk is " + unfit.String()}
			}
		}
	}
	return nil
}

// carriedWithout tells whether, without s, the voters that are up and have a
// disk better than unfit are a majority, and half of those that there should be
// stay: disks that fail one after the other, each for a moment, would otherwise
// leave a voter or two of five, whose loss is everybody's. A server that is
// merely low is not spared when one voter would be left: its copy is worth more.
func (v view) carriedWithout(s member, unfit fitness) bool {
	rest := slices.DeleteFunc(v.voters(), func(o member) bool { return o.ID == s.ID })
	good := 0
	for _, o := range rest {
		if (o.ID == v.Self || v.Reachable[o.ID]) && v.Disks[o.ID] < unfit {
			good++
		}
	}
	if unfit == diskLow && len(rest) < 2 || 2*len(rest) < v.Voters {
		return false
	}
	return len(rest) > 0 && 2*good > len(rest)
}

// heir is who should lead instead of this server for the sake of its disk.
func (v view) heir() (member, bool) {
	v.Servers = slices.DeleteFunc(slices.Clone(v.Servers), func(s member) bool {
		return s.ID != v.Self && v.Disks[s.ID] >= v.Disks[v.Self]
	})
	return v.successor()
}

// Consumer is something else on the disk that can give space back.
type Consumer struct {
	Name  string
	Bytes func() int64           // how much it takes
	Shed  func(want int64) int64 // removes what can be had again, up to a little more than want; how much it was
}

// shed has the biggest consumers, one after the other, give back what is
// missing; the names are of those that gave something.
func shed(consumers []Consumer, missing int64) (freed int64, names []string) {
	type sized struct {
		Consumer
		bytes int64
	}
	var list []sized
	for _, c := range consumers {
		list = append(list, sized{c, c.Bytes()})
	}
	slices.SortStableFunc(list, func(a, b sized) int { return int(min(max(b.bytes-a.bytes, -1), 1)) })
	for _, c := range list {
		if freed >= missing {
			break
		}
		if got := c.Shed(missing - freed); got > 0 {
			freed += got
			names = append(names, c.Name)
		}
	}
	return freed, names
}

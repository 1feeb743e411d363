package ntpproxy

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"time"

	"holdfast/ntpproxy/discipline"
)

// Tracking is how the clock stands, for an admin.
type Tracking struct {
	Steering       bool          `json:"steering"` // this node does; the rest of the fields but those of the standing are zero else
	Stratum        uint8         `json:"stratum"`  // 0: not synchronised
	Reference      string        `json:"reference"`
	Source         string        `json:"source,omitempty"`
	Leap           string        `json:"leap"`
	RootDelay      time.Duration `json:"root_delay_ns"`
	RootDispersion time.Duration `json:"root_dispersion_ns"`
	Offset         time.Duration `json:"offset_ns"`     // yet to be corrected
	Slew           float64       `json:"slew_ppm"`      // how much faster the clock runs now, to correct it
	Frequency      float64       `json:"frequency_ppm"` // that the oscillator is corrected by
	Skew           float64       `json:"skew_ppm"`      // standard error of that
	Updates        int           `json:"updates"`
	Phase          string        `json:"phase,omitempty"`   // whose time it is: sourced, following, orphan leader, orphan, alone
	HeldBy         []string      `json:"held_by,omitempty"` // services that live here and forbid steps
	Leader         string        `json:"leader,omitempty"`  // of the store
}

// Tracking tells how the clock stands now.
func (s *Server) Tracking() Tracking {
	now := s.now()
	standing := s.Standing()
	t := Tracking{
		Stratum: standing.Stratum, Reference: standing.Reference.String(), Leap: standing.Leap.String(),
		RootDelay: standing.RootDelay, RootDispersion: standing.dispersion(now),
	}
	t.Leader, t.HeldBy = s.leader(), s.heldBy()
	if k := s.Kept(); k != nil {
		t.Phase = k.Phase.String()
		t.Steering, t.Offset, t.Updates = true, k.Offset, k.Updates
		t.Slew = k.Slew * 1e6
		t.Frequency, t.Skew = k.Frequency*1e6, k.Skew*1e6
		if k.Leading >= 0 {
			t.Source = k.Sources[k.Leading].Name
		}
	}
	return t
}

// Source is what is known of a source, for an admin.
type Source struct {
	Name      string        `json:"name"`
	State     string        `json:"state"`
	Stratum   uint8         `json:"stratum"`
	Poll      time.Duration `json:"poll_ns"`
	Reach     uint8         `json:"reach"` // a bit a request, the last one lowest
	Samples   int           `json:"samples"`
	Offset    time.Duration `json:"offset_ns"` // of the source before this clock
	Error     time.Duration `json:"error_ns"`  // standard error of it
	Distance  time.Duration `json:"distance_ns"`
	Delay     time.Duration `json:"delay_ns"`
	Frequency float64       `json:"frequency_ppm"` // of the source against the bare oscillator
}

// Sources tells how the sources stand; nil while this node does not steer.
func (s *Server) Sources() (list []Source) {
	k := s.Kept()
	if k == nil {
		return nil
	}
	for _, r := range k.Sources {
		list = append(list, Source{
			Name: r.Name, State: r.State.String(), Stratum: r.Stratum, Poll: discipline.Interval(r.Poll), Reach: r.Reach,
			Samples: r.Samples, Offset: r.Offset, Error: r.Error, Distance: r.Distance, Delay: r.Delay, Frequency: r.Frequency * 1e6,
		})
	}
	return list
}

// Client is what is known of a client, for an admin.
type Client struct {
	Address  netip.Addr    `json:"address"`
	Name     string        `json:"name,omitempty"` // in the cluster file
	Tells    bool          `json:"tells"`          // its requests carry its time; else Offset is not known
	Offset   time.Duration `json:"offset_ns"`      // of it before this clock, less the way from it to here
	Age      time.Duration `json:"age_ns"`         // of its last request
	Requests uint64        `json:"requests"`
	Version  uint8         `json:"version"` // of NTP
}

// Clients tells which of the cluster's machines asked within the last hour,
// the one whose clock is furthest off first, those that don't tell last.
func (s *Server) Clients() []Client {
	now, names := s.elapsed(), s.settings.Load().names
	list := []Client{}
	for _, c := range s.clients.list(now) {
		one := Client{Address: c.addr, Name: names[c.addr], Tells: c.tells(), Age: now - c.seen, Requests: c.requests, Version: c.version}
		if one.Tells {
			one.Offset = c.ahead
		}
		list = append(list, one)
	}
	return list
}

// countClients counts the clients by what their clocks look like: those that
// are further off than the service nodes may be from each other are off.
func (s *Server) countClients() map[string]int {
	count := map[string]int{"right": 0, "off": 0, "hidden": 0}
	agree := s.settings.Load().agree
	for _, c := range s.clients.list(s.elapsed()) {
		switch off := c.off(); {
		case off < 0:
			count["hidden"]++
		case off > agree:
			count["off"]++
		default:
			count["right"]++
		}
	}
	return count
}

// Handler answers `holdfast ntp`.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ntp/tracking", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Tracking()) })
	mux.HandleFunc("GET /v1/ntp/sources", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Sources()) })
	mux.HandleFunc("GET /v1/ntp/clients", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Clients()) })
	mux.HandleFunc("GET /v1/ntp/peers", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Peers()) })
	mux.HandleFunc("POST /v1/ntp/step", func(w http.ResponseWriter, r *http.Request) {
		forced := r.URL.Query().Has("force")
		if err := s.StepNow(forced); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		s.log.Warn("an admin allows the clock to be stepped", "forced", forced)
		writeJSON(w, struct{}{})
	})
	return mux
}

// writeJSON answers with v.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who asked is gone: nobody to tell
}

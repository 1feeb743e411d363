package ipvs

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// table is what an Owner needs of a kernel; a Handle, or a model in tests.
type table interface {
	List() ([]Observed, error)
	Get(Key) (Observed, bool, error)
	Count(*Observed) error
	Apply(Change) error
	Daemons() ([]Daemon, error)
	StartDaemon(Daemon) error
	StopDaemon(Role) error
}

// Owner makes the services that are ours what they should be, and leaves all
// others alone. Its methods may be called from any goroutine; they wait for
// each other.
type Owner struct {
	kernel table

	mu      sync.Mutex
	journal *journal
}

// NewOwner reads from the journal which services are ours: those of a predecessor
// in the handle's network namespace, of which the journal must be; they are
// thereby adopted. The count is of lines that could not be read.
func NewOwner(h *Handle, kept Journal) (o *Owner, broken int, err error) {
	j, broken, err := openJournal(kept)
	if err != nil {
		return nil, 0, fmt.Errorf("ipvs: journal: %w", err)
	}
	return &Owner{kernel: h, journal: j}, broken, nil
}

// Set makes our services those of desired and no others: it reads the tables,
// sends one message for each difference, and reads back what it has changed.
// When nothing differs, nothing is sent. It gives what was changed, also with
// an error; the errors of one service don't keep the others from being set.
// A desired service that another has made is not touched and is ErrForeign.
func (o *Owner) Set(desired []Service) ([]Change, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, s := range desired {
		if err := s.valid(); err != nil {
			return nil, fmt.Errorf("ipvs: service %v: %w", s.Key, err)
		}
		if slices.ContainsFunc(desired[:i], func(other Service) bool { return other.Key == s.Key }) {
			return nil, fmt.Errorf("ipvs: service %v is desired twice", s.Key)
		}
	}
	observed, err := o.kernel.List()
	if err != nil {
		return nil, err
	}
	var ours []Service
	var errs []error
	for _, s := range observed {
		switch {
		case o.journal.keys[s.Key]:
			ours = append(ours, s.Service)
		case slices.ContainsFunc(desired, func(d Service) bool { return d.Key == s.Key }):
			errs = append(errs, fmt.Errorf("ipvs: service %v: %w; end what made it, or remove it with ipvsadm", s.Key, ErrForeign))
			desired = without(desired, s.Key)
		}
	}
	changes := Diff(ours, desired)
	if err := o.claim(changes); err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	made, failed := o.apply(changes)
	errs = append(errs, slices.Collect(maps.Values(failed))...)
	errs = append(errs, o.readBack(made, failed, desired)...)
	errs = append(errs, o.forget(desired))
	return made, errors.Join(errs...)
}

// Ours lists our services as the kernel has them, with their counters.
func (o *Owner) Ours() ([]Observed, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	all, err := o.kernel.List()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s Observed) bool { return !o.journal.keys[s.Key] })
	for i := range all {
		if err := o.kernel.Count(&all[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func without(list []Service, k Key) []Service {
	return slices.DeleteFunc(slices.Clone(list), func(s Service) bool { return s.Key == k })
}

// claim writes down what will be made, before it is.
func (o *Owner) claim(changes []Change) error {
	fresh := false
	for _, c := range changes {
		if c.Kind == AddService && !o.journal.keys[c.Service.Key] {
			o.journal.keys[c.Service.Key], fresh = true, true
		}
	}
	if !fresh {
		return nil
	}
	err := o.journal.save()
	if err != nil { // nothing was made, so nothing is claimed
		for _, c := range changes {
			if c.Kind == AddService {
				delete(o.journal.keys, c.Service.Key)
			}
		}
	}
	return err
}

// apply makes the changes, and gives the errors by service. After one of a
// service, its other changes wait for the next Set.
func (o *Owner) apply(changes []Change) (made []Change, failed map[Key]error) {
	failed = map[Key]error{}
	for _, c := range changes {
		if failed[c.Service.Key] != nil {
			continue
		}
		if err := o.kernel.Apply(c); err != nil {
			failed[c.Service.Key] = err
			continue
		}
		made = append(made, c)
	}
	return made, failed
}

// readBack looks at each service that was changed without an error: a kernel
// may accept what it does not do.
func (o *Owner) readBack(made []Change, failed map[Key]error, desired []Service) (errs []error) {
	seen := map[Key]bool{}
	for _, c := range made {
		k := c.Service.Key
		if seen[k] || failed[k] != nil {
			continue
		}
		seen[k] = true
		now, there, err := o.kernel.Get(k)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var have, want []Service
		if there {
			have = []Service{now.Service}
		}
		if at := slices.IndexFunc(desired, func(d Service) bool { return d.Key == k }); at >= 0 {
			want = desired[at : at+1]
		}
		for _, missing := range Diff(have, want) {
			errs = append(errs, fmt.Errorf("ipvs: the kernel took the changes of %v and does not have them: still to do: %v", k, missing))
		}
	}
	return errs
}

// forget takes from the journal what is not desired and not there any more.
func (o *Owner) forget(desired []Service) error {
	fewer := false
	for k := range o.journal.keys {
		if slices.ContainsFunc(desired, func(d Service) bool { return d.Key == k }) {
			continue
		}
		if _, there, err := o.kernel.Get(k); err == nil && !there {
			delete(o.journal.keys, k)
			fewer = true
		}
	}
	if !fewer {
		return nil
	}
	return o.journal.save()
}

// SetDaemons makes our synchronisation daemons those of desired, at most one
// of each role. A daemon that differs is stopped before the right one starts:
// the kernel can't change one. Another's is not touched and is ErrForeign,
// unless it is just what is desired.
func (o *Owner) SetDaemons(desired []Daemon) (changed bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	running, err := o.kernel.Daemons()
	if err != nil {
		return false, err
	}
	var errs []error
	for _, role := range []Role{Master, Backup} {
		ofRole := func(d Daemon) bool { return d.Role == role }
		have, want := slices.IndexFunc(running, ofRole), slices.IndexFunc(desired, ofRole)
		var now, then *Daemon
		if have >= 0 {
			now = &running[have]
		}
		if want >= 0 {
			then = &desired[want]
		}
		did, err := o.setDaemon(role, now, then)
		changed = changed || did
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

func (o *Owner) setDaemon(role Role, have, want *Daemon) (changed bool, err error) {
	ours := o.journal.daemons[role]
	switch {
	case have == nil && want == nil && ours:
		delete(o.journal.daemons, role)
		return false, o.journal.save()
	case have == nil && want == nil, have != nil && want != nil && *have == *want:
		return false, nil
	case have != nil && !ours && want == nil:
		return false, nil
	case have != nil && !ours:
		return false, fmt.Errorf("ipvs: the %v daemon on %s with the sync id %d: %w; stop it with ipvsadm --stop-daemon %v",
			role, have.Interface, have.SyncID, ErrForeign, role)
	}
	if have != nil {
		if err := o.kernel.StopDaemon(role); err != nil {
			return false, err
		}
	}
	if want == nil {
		delete(o.journal.daemons, role)
		return true, o.journal.save()
	}
	if !ours {
		o.journal.daemons[role] = true
		if err := o.journal.save(); err != nil {
			delete(o.journal.daemons, role)
			return have != nil, err
		}
	}
	if err := o.kernel.StartDaemon(*want); err != nil {
		// What does not run is not ours: the next of this role may be another's.
		delete(o.journal.daemons, role)
		return have != nil, errors.Join(err, o.journal.save())
	}
	return true, nil
}

package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// RotationStep says how far a change of the authority is.
type RotationStep string

// The steps, in order. ca.crt of the authority's directory decides, alone: each
// step is one rename of it, so that a step that was cut short is either done or
// not, and can be done again.
const (
	RotationNone     RotationStep = "none"     // one authority
	RotationBegun    RotationStep = "begun"    // two, the old one issues
	RotationSwitched RotationStep = "switched" // two, the new one issues
)

// Rotation is where the change of a cluster's authority stands.
type Rotation struct {
	Step    RotationStep `json:"step"`
	Cluster string       `json:"cluster"`
	Old     string       `json:"old"`           // AuthorityID; without a change the only one
	New     string       `json:"new,omitempty"` // AuthorityID
	Expires time.Time    `json:"expires"`       // of the authority that issues
}

// RotationOf tells where the change of the authority in caDir stands.
func RotationOf(caDir string) (Rotation, error) {
	a, err := loadAuthority(caDir)
	if err != nil {
		return Rotation{}, fmt.Errorf("peer: %w", err)
	}
	return a.rotation(), nil
}

func (a *authority) rotation() Rotation {
	r := Rotation{Step: RotationNone, Cluster: a.cluster, Old: AuthorityID(a.cas[0]), Expires: a.cert.NotAfter}
	switch {
	case len(a.cas) == 1:
	case a.keyFile == fileCAKey:
		r.Step, r.New = RotationBegun, AuthorityID(a.cas[1])
	default:
		r.Step, r.Old, r.New = RotationSwitched, AuthorityID(a.cas[1]), AuthorityID(a.cas[0])
	}
	return r
}

// RotateBegin makes a second authority in caDir. From then on Issue gives the
// certificates of both with each node's, and issues by the old one as before.
func RotateBegin(caDir string) (Rotation, error) { return rotateBegin(caDir, time.Now()) }

func rotateBegin(caDir string, now time.Time) (Rotation, error) {
	return rotate(caDir, "begin", func(a *authority) error {
		if step := a.rotation().Step; step != RotationNone {
			return fmt.Errorf("a change of the authority is %s already: end it first", step)
		}
		if err := plausible(now); err != nil {
			return err
		}
		if a.keyFile == fileNextKey { // the last change was cut short at its very end
			if err := tidyKeys(caDir, a); err != nil {
				return err
			}
		}
		name := fmt.Sprintf("Holdfast CA of %s, %s", a.cluster, now.UTC().Format(time.DateOnly))
		der, keyPEM, err := newAuthorityPair(a.cluster, name, now)
		if err != nil {
			return err
		}
		// The key first: alone it is of no authority, and the next try replaces it.
		if err := writeAll(caDir, []file{{fileNextKey, modeSecret, keyPEM}}); err != nil {
			return err
		}
		return writeAll(caDir, []file{{fileCA, modePublic, append(encodeBundle(a.cas), encodeCert(der)...)}})
	})
}

// RotateSwitch has the new authority issue from now on. Every node must believe
// it by then: the caller has asked.
func RotateSwitch(caDir string) (Rotation, error) {
	return rotate(caDir, "switch", func(a *authority) error {
		switch a.rotation().Step {
		case RotationNone:
			return errors.New("no change of the authority has begun")
		case RotationSwitched:
			return errors.New("the new authority issues already: issue every certificate anew, install them, then finish")
		}
		a.cas[0], a.cas[1] = a.cas[1], a.cas[0]
		return writeAll(caDir, []file{{fileCA, modePublic, encodeBundle(a.cas)}})
	})
}

// RotateFinish drops the old authority, and its key for good. Every node must
// have a certificate of the new one by then: the caller has asked.
func RotateFinish(caDir string) (Rotation, error) {
	return rotate(caDir, "finish", func(a *authority) error {
		switch a.rotation().Step {
		case RotationNone:
			if a.keyFile != fileNextKey {
				return errors.New("no change of the authority has begun")
			}
		case RotationBegun:
			return errors.New("the old authority still issues: switch first")
		default:
			if err := writeAll(caDir, []file{{fileCA, modePublic, encodeBundle(a.cas[:1])}}); err != nil {
				return err
			}
		}
		return tidyKeys(caDir, a)
	})
}

// tidyKeys puts the key of the only authority where that of the old one was.
func tidyKeys(caDir string, a *authority) error {
	keyPEM, err := encodeKey(a.key)
	if err != nil {
		return err
	}
	if err := writeAll(caDir, []file{{fileCAKey, modeSecret, keyPEM}}); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(caDir, fileNextKey)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// rotate does one step and tells where the change stands then.
func rotate(caDir, what string, do func(*authority) error) (Rotation, error) {
	a, err := loadAuthority(caDir)
	if err == nil {
		err = do(a)
	}
	if err == nil {
		a, err = loadAuthority(caDir)
	}
	if err != nil {
		return Rotation{}, fmt.Errorf("peer: change of the authority in %s: %s: %w", caDir, what, err)
	}
	return a.rotation(), nil
}

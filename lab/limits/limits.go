// Package limits raises, while any lab is up, what the machine allows all of a
// user's programs together, and gives it back when the last lab is gone.
package limits

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Wanted are the sysctls and their least values. A node takes 10 to 20 inotify
// instances; a machine's default of 128 stops the seventh node's programs with
// "too many open files".
var Wanted = map[string]int{
	"fs/inotify/max_user_instances": 8192,
	"fs/inotify/max_user_watches":   524288,
}

// Keeper raises and gives back. Labs is the folder that has one folder for each
// lab that is up; Keeper's own file is beside them.
type Keeper struct {
	Labs string
	Proc string // /proc/sys
}

// Machine is the keeper of this machine's limits.
func Machine(labs string) Keeper { return Keeper{labs, "/proc/sys"} }

// name of the file that holds the values from before the first lab.
const name = "limits.json"

// Raise raises what is too low. The calling lab's folder must be there already.
func (k Keeper) Raise() error {
	return k.locked(func() error {
		before, err := k.before()
		if err != nil {
			return err
		}
		var raise []string
		for key, want := range Wanted {
			have, err := k.get(key)
			if err != nil {
				return err
			}
			if have < want {
				raise = append(raise, key)
				if _, ok := before[key]; !ok {
					before[key] = have
				}
			}
		}
		if raise == nil {
			return nil
		}
		b, err := json.Marshal(before)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(k.Labs, name), b, 0o644); err != nil {
			return err
		}
		for _, key := range raise {
			if err := k.set(key, Wanted[key]); err != nil {
				return err
			}
		}
		return nil
	})
}

// GiveBack sets the former values again if no lab is left, except where
// somebody else has changed them meanwhile.
func (k Keeper) GiveBack() error {
	err := k.locked(func() error {
		es, err := os.ReadDir(k.Labs)
		if err != nil {
			return err
		}
		for _, e := range es {
			if e.IsDir() {
				return nil
			}
		}
		before, err := k.before()
		if err != nil {
			return err
		}
		for key, value := range before {
			if have, err := k.get(key); err != nil || have != Wanted[key] {
				continue
			}
			if err := k.set(key, value); err != nil {
				return err
			}
		}
		if err := os.Remove(filepath.Join(k.Labs, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		os.Remove(k.Labs) // another lab may have come meanwhile; it raises again
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) { // there was no lab
		return nil
	}
	return err
}

func (k Keeper) before() (map[string]int, error) {
	before := map[string]int{}
	b, err := os.ReadFile(filepath.Join(k.Labs, name))
	if errors.Is(err, fs.ErrNotExist) {
		return before, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &before); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(k.Labs, name), err)
	}
	return before, nil
}

func (k Keeper) get(key string) (int, error) {
	b, err := os.ReadFile(filepath.Join(k.Proc, key))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func (k Keeper) set(key string, value int) error {
	return os.WriteFile(filepath.Join(k.Proc, key), []byte(strconv.Itoa(value)), 0o644)
}

// locked calls f while no other command does the same.
func (k Keeper) locked(f func() error) error {
	dir, err := os.Open(k.Labs)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", k.Labs, err)
	}
	return f()
}

// Package wan is the link between a lab's LAN segments: it delays, loses and
// limits packets, or cuts the link. Faults are of packets that the router
// forwards from one segment to another; within a segment there are none.
package wan

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Fault is what is wrong with the link. The zero value is a perfect link.
type Fault struct {
	Delay  time.Duration `json:"delay"`  // each way
	Jitter time.Duration `json:"jitter"` // at most this much more or less delay; never reorders
	Loss   float64       `json:"loss"`   // the share of packets lost, 0 to 1
	Rate   float64       `json:"rate"`   // bytes a second and direction; 0: unlimited
	Cut    bool          `json:"cut"`    // nothing passes, and nobody is told
}

// Slow reports whether packets have to pass through the pump.
func (f Fault) Slow() bool { return f.Delay != 0 || f.Jitter != 0 || f.Loss != 0 || f.Rate != 0 }

// Usage names the words that Parse knows.
const Usage = "delay=DURATION jitter=DURATION loss=PERCENT% rate=Nmbit|Nkbit | cut | restore | off"

// Parse returns f changed by words such as delay=50ms, loss=1%, rate=10mbit,
// cut, restore (ends a cut) and off (ends everything but a cut).
func Parse(f Fault, words []string) (Fault, error) {
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		var err error
		switch k {
		case "delay":
			f.Delay, err = duration(v)
		case "jitter":
			f.Jitter, err = duration(v)
		case "loss":
			f.Loss, err = percent(v)
		case "rate":
			f.Rate, err = rate(v)
		case "cut":
			f.Cut = true
		case "restore":
			f.Cut = false
		case "off":
			f = Fault{Cut: f.Cut}
		default:
			err = fmt.Errorf("want %s", Usage)
		}
		if err != nil {
			return Fault{}, fmt.Errorf("wan: word %q: %w", w, err)
		}
	}
	return f, nil
}

func duration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err == nil && (d < 0 || d > time.Minute) {
		err = fmt.Errorf("want 0s to 1m")
	}
	return d, err
}

func percent(s string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !strings.HasSuffix(s, "%") || !(n >= 0 && n <= 100) {
		return 0, fmt.Errorf("want a percentage, 0%% to 100%%")
	}
	return n / 100, nil
}

func rate(s string) (float64, error) {
	unit := 0.0
	switch {
	case strings.HasSuffix(s, "gbit"):
		unit = 1e9 / 8
	case strings.HasSuffix(s, "mbit"):
		unit = 1e6 / 8
	case strings.HasSuffix(s, "kbit"):
		unit = 1e3 / 8
	}
	n, err := strconv.ParseFloat(strings.TrimRight(s, "gmkbit"), 64)
	if err != nil || unit == 0 || !(n >= 0 && n < 1e6) {
		return 0, fmt.Errorf("want a number with mbit, kbit or gbit; 0mbit is unlimited")
	}
	return n * unit, nil
}

// String gives the fault in the words that Parse knows.
func (f Fault) String() string {
	var w []string
	if f.Cut {
		w = append(w, "cut")
	}
	if f.Delay != 0 {
		w = append(w, "delay="+f.Delay.String())
	}
	if f.Jitter != 0 {
		w = append(w, "jitter="+f.Jitter.String())
	}
	if f.Loss != 0 {
		w = append(w, fmt.Sprintf("loss=%g%%", f.Loss*100))
	}
	if f.Rate != 0 {
		w = append(w, fmt.Sprintf("rate=%gmbit", f.Rate*8/1e6))
	}
	if w == nil {
		return "off"
	}
	return strings.Join(w, " ")
}

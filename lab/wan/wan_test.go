package wan

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	base := Fault{Delay: time.Second, Loss: 0.5, Cut: true}
	for words, want := range map[string]Fault{
		"":                                    base,
		"delay=50ms jitter=5ms":               {Delay: 50 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.5, Cut: true},
		"loss=1% rate=10mbit":                 {Delay: time.Second, Loss: 0.01, Rate: 1.25e6, Cut: true},
		"restore":                             {Delay: time.Second, Loss: 0.5},
		"off":                                 {Cut: true},
		"off restore":                         {},
		"off restore rate=800kbit":            {Rate: 1e5},
		"off restore rate=1gbit rate=0.5mbit": {Rate: 62500},
		"off restore delay=0s loss=0% rate=0mbit": {},
	} {
		got, err := Parse(base, strings.Fields(words))
		if err != nil {
			t.Errorf("%q: %v", words, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q: %s", words, d)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for word, want := range map[string]string{
		"cutt":        "want delay=",
		"delay":       "delay",
		"delay=50":    "missing unit",
		"delay=-1s":   "0s to 1m",
		"delay=2m":    "0s to 1m",
		"loss=3":      "percentage",
		"loss=101%":   "percentage",
		"loss=NaN%":   "percentage",
		"rate=10":     "mbit",
		"rate=-1mbit": "mbit",
		"rate=1mb":    "mbit",
	} {
		got, err := Parse(Fault{}, []string{word})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %+v, %v; want an error with %q and the word", word, got, err, want)
		}
	}
}

// What a fault is shown as gives the same fault back.
func FuzzParse(f *testing.F) {
	f.Add("delay=50ms jitter=5ms loss=1% rate=10mbit cut")
	f.Add("loss=0.1% rate=3kbit")
	f.Fuzz(func(t *testing.T, words string) {
		a, err := Parse(Fault{}, strings.Fields(words))
		if err != nil {
			return
		}
		b, err := Parse(Fault{}, strings.Fields(a.String()))
		if err != nil {
			t.Fatalf("%q gives %q: %v", words, a, err)
		}
		if near(a.Loss, b.Loss) && near(a.Rate, b.Rate) {
			b.Loss, b.Rate = a.Loss, a.Rate
		}
		if a != b {
			t.Errorf("%q: %+v is shown as %q, which is %+v", words, a, a, b)
		}
	})
}

func near(a, b float64) bool { d := a - b; return d <= 1e-9*a && -d <= 1e-9*a }

func TestDue(t *testing.T) {
	now := time.Unix(1000, 0)
	ms := time.Millisecond
	for _, tc := range []struct {
		name string
		f    Fault
		last time.Duration // after now
		n    int
		want time.Duration
	}{
		{"perfect", Fault{}, 0, 1500, 0},
		{"delay", Fault{Delay: 50 * ms}, 0, 1500, 50 * ms},
		{"delay, the one before is earlier", Fault{Delay: 50 * ms}, 20 * ms, 1500, 50 * ms},
		{"never before the one before", Fault{}, 20 * ms, 1500, 20 * ms},
		{"rate: 1500 bytes at 150 kB/s", Fault{Rate: 150e3}, 0, 1500, 10 * ms},
		{"rate: behind another", Fault{Rate: 150e3}, 30 * ms, 1500, 40 * ms},
	} {
		if got := due(&tc.f, now, now.Add(tc.last), tc.n).Sub(now); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	jittered := Fault{Delay: 50 * ms, Jitter: 5 * ms}
	last := now
	for range 1000 {
		at := due(&jittered, now, last, 100)
		if d := at.Sub(now); d < 45*ms || d > 55*ms {
			t.Fatalf("jitter gives %v", d)
		}
		if at.Before(last) {
			t.Fatal("jitter reorders")
		}
		last = at
	}
}

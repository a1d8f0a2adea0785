package differential

import (
	"flag"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/test/envoytest"
)

var only = flag.String("case", "", "play only the cases whose names this regular expression matches; rules may then be without use")
var once = flag.Bool("once", false, "play each case once, though the machine may be too slow for that to tell")

// TestDifferential plays all cases against both proxies. A difference that no rule explains fails it, and
// so does a rule that no difference needs.
func TestDifferential(t *testing.T) {
	envoytest.Program(t)
	p := newPKI(t)
	var ports []int
	for _, l := range listeners {
		ports = append(ports, portOf(l.name))
	}
	es := startEngines(t, bootstrap(p), p, ports)
	var cases []*test
	for _, group := range [][]*test{
		parsingCases(), pathCases(), trustCases(), answerCases(), http2Cases(), retryCases(), timeoutCases(),
		routeCases(), mutationCases(), redirectCases(), tlsCases(), tcpCases(),
	} {
		cases = append(cases, group...)
	}
	names := map[string]bool{}
	for _, c := range cases {
		if names[c.name] {
			t.Errorf("two cases have the name %q", c.name)
		}
		names[c.name] = true
	}
	if len(cases) < 600 {
		t.Errorf("%d cases, fewer than 600", len(cases))
	}
	if *only != "" {
		re := regexp.MustCompile(*only)
		cases = slices.DeleteFunc(cases, func(c *test) bool { return !re.MatchString(c.name) })
	}
	settle(t, es, p, cases)
	if *only != "" {
		return
	}
	for _, r := range rules {
		if r.used == 0 && !r.races && !strings.HasPrefix(r.cases, "bootstrap: ") {
			t.Errorf("the rule %q is not needed: no case differs so", r.subject)
		}
	}
}

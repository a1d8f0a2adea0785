package differential

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// facts is what one engine did with one case, by what it is about.
type facts map[string]string

// add notes a header line; several of one name are one fact.
func (f facts) add(at, line string) {
	k, v, _ := strings.Cut(line, ":")
	if strings.HasPrefix(line, "trailer ") {
		at, k = at+"trailer ", strings.TrimPrefix(k, "trailer ")
	}
	key, v := at+"header "+k, strings.TrimSpace(v)
	if old, ok := f[key]; ok {
		v = old + " | " + v
	}
	f[key] = v
}

// upstreamFacts notes what reached the upstreams.
func (f facts) upstreamFacts(rs []request) {
	f["upstream requests"] = strconv.Itoa(len(rs))
	for i, r := range rs {
		at := fmt.Sprintf("upstream %d ", i+1)
		f[at+"line"], f[at+"body"] = r.line, r.body
		if r.note != "" {
			f[at+"note"] = r.note
		}
		for _, h := range r.headers {
			f.add(at, h)
		}
	}
}

// logFacts notes the fields of the access log's lines.
func (f facts) logFacts(lines []string) {
	f["log lines"] = strconv.Itoa(len(lines))
	for i, l := range lines {
		for kv := range strings.SplitSeq(l, "\t") {
			k, v, ok := strings.Cut(kv, "=")
			if !ok {
				k, v = "?", kv
			}
			f[fmt.Sprintf("log %d %s", i+1, k)] = v
		}
	}
}

var (
	uuid     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)
	httpDate = regexp.MustCompile(`(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z][a-z] 20\d\d \d\d:\d\d:\d\d GMT`)
	anyPort  = regexp.MustCompile(`CLIENT:\d{4,5}`)
)

// normalise takes out what differs from run to run.
func (f facts) normalise(e *engine, client string) {
	r := strings.NewReplacer(client, "CLIENT", e.addr, "PROXY")
	for k, v := range f {
		v = httpDate.ReplaceAllString(uuid.ReplaceAllString(r.Replace(v), "UUID"), "DATE")
		v = anyPort.ReplaceAllString(v, "CLIENT:PORT")
		if strings.HasSuffix(strings.ToLower(k), "header x-envoy-upstream-service-time") {
			v = "N"
		}
		if strings.HasSuffix(k, "header x-envoy-expected-rq-timeout-ms") && strings.HasPrefix(v, "149") {
			v = "15000" // what is left after an earlier attempt
		}
		f[k] = v
	}
}

// differences lists the facts that differ, as `what: "Envoy's" -> "Carrick's"`.
func differences(e, c facts) (ds []string) {
	all := maps.Clone(e)
	maps.Copy(all, c)
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if a, b := clip(e[k]), clip(c[k]); a != b {
			ds = append(ds, fmt.Sprintf("%s: %q -> %q", k, a, b))
		}
	}
	return ds
}

func clip(s string) string {
	if len(s) > 300 {
		return s[:300] + "…" + strconv.Itoa(len(s))
	}
	return s
}

// rule accepts differences. It has all that docs/envoy-differences.md says of them.
type rule struct {
	subject, envoy, carrick, why string

	cases string // which cases, a regular expression
	facts string // which differences, one too
	must  string // one of the case's differences must be this, else the rule is not for it
	races bool   // the difference is one of timing, which a run may not show

	inCases, inFacts, inMust *regexp.Regexp
	used                     int
}

func (r *rule) compile() {
	if r.inCases == nil {
		line := func(s string) *regexp.Regexp { return regexp.MustCompile(`(?s)^(?:` + s + `)$`) }
		r.inCases, r.inFacts, r.inMust = line(r.cases), line(r.facts), line(r.must)
	}
}

// takes reports whether the rule explains one of a case's differences.
func (r *rule) takes(name, difference string, all []string) bool {
	r.compile()
	return r.inCases.MatchString(name) && r.inFacts.MatchString(difference) && (r.must == "" || slices.ContainsFunc(all, r.inMust.MatchString))
}

// unexplained returns the differences that no rule takes, and counts the rules' uses if count.
func unexplained(name string, ds []string, count bool) (out []string) {
	for _, d := range ds {
		i := slices.IndexFunc(rules, func(r *rule) bool { return r.takes(name, d, ds) })
		switch {
		case i < 0:
			out = append(out, d)
		case count:
			rules[i].used++
		}
	}
	return out
}

// play runs cases on both engines, some at a time, and returns what differs, by case.
func play(t *testing.T, es []*engine, p *pki, cases []*test, wait patience, atOnce int) map[string][]string {
	t.Helper()
	type outcome struct {
		client string
		facts  facts
	}
	results := make([][2]outcome, len(cases))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, c := range cases {
		for k, e := range es {
			slots <- struct{}{}
			wg.Add(1)
			go func() {
				defer func() { <-slots; wg.Done() }()
				client := clientAddr()
				results[i][k] = outcome{client, c.run(e, p, client, wait)}
			}()
		}
	}
	wg.Wait()
	for k, e := range es {
		logs := e.logLines(t)
		for i := range cases {
			o := &results[i][k]
			o.facts.upstreamFacts(e.up.of(o.client))
			o.facts.logFacts(logs[o.client])
			o.facts.normalise(e, o.client)
		}
	}
	out := map[string][]string{}
	for i, c := range cases {
		out[c.name] = differences(results[i][0].facts, results[i][1].facts)
	}
	return out
}

// settle plays the cases until what differs is explained, with more patience each time: a machine
// under load must not look like a difference.
func settle(t *testing.T, es []*engine, p *pki, cases []*test) {
	t.Helper()
	began := time.Now()
	left := cases
	waits := []patience{hasty, careful, careful}
	if *once {
		waits = waits[:1]
	}
	for round, wait := range waits {
		atOnce := 48
		if round > 0 {
			atOnce = 12
		}
		ds := play(t, es, p, left, wait, atOnce)
		var again []*test
		for _, c := range left {
			if len(unexplained(c.name, ds[c.name], false)) > 0 {
				again = append(again, c)
				if round == len(waits)-1 {
					t.Errorf("%s:\n\t%s", c.name, strings.Join(unexplained(c.name, ds[c.name], true), "\n\t"))
				}
			} else {
				unexplained(c.name, ds[c.name], true)
			}
		}
		t.Logf("round %d: %d cases, %d with differences that no rule explains, %v", round+1, len(left), len(again), time.Since(began).Round(time.Millisecond))
		if left = again; len(left) == 0 {
			return
		}
	}
}

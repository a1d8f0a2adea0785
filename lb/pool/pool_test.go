package pool

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/labels"
)

func made(t testing.TB, name string, auto bool, ranges ...string) Pool {
	t.Helper()
	r, err := ParseRanges(ranges)
	if err != nil {
		t.Fatal(err)
	}
	return Pool{Name: name, Ranges: r, AutoAssign: auto}
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func svc(name string, change ...func(*Service)) Service {
	s := Service{Namespace: "ns", Name: name, Families: []Family{IPv4}, Ports: []Port{{"TCP", 80}}}
	for _, c := range change {
		c(&s)
	}
	return s
}

func has(a ...string) func(*Service) { return func(s *Service) { s.Current = addrs(a...) } }
func asks(a ...string) func(*Service) {
	return func(s *Service) { s.Addresses = addrs(a...) }
}
func shares(key string, port int32) func(*Service) {
	return func(s *Service) { s.ShareKey, s.Ports = key, []Port{{"TCP", port}} }
}
func dual(all bool) func(*Service) {
	return func(s *Service) { s.Families, s.AllFamilies = []Family{IPv4, IPv6}, all }
}

func selector(t testing.TB, s string) labels.Selector {
	t.Helper()
	sel, err := labels.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

func TestAssign(t *testing.T) {
	first := made(t, "first", true, "10.10.50.75-10.10.50.77")
	manual := made(t, "manual", false, "10.10.60.0/30")
	six := made(t, "six", true, "fc00::10-fc00::11")
	both := made(t, "both", true, "10.1.0.1-10.1.0.9", "fc01::/64")
	team := made(t, "team", true, "10.2.0.1-10.2.0.9")
	team.Allocation = &Allocation{Namespaces: []string{"ns"}, ServiceSelectors: []labels.Selector{selector(t, "tier=web")}}
	urgent := made(t, "zz-urgent", true, "10.3.0.1-10.3.0.9")
	urgent.Allocation = &Allocation{Priority: 10, NamespaceSelectors: []labels.Selector{selector(t, "env=prod")}}
	buggy := made(t, "buggy", true, "10.4.0.255-10.4.1.1")
	buggy.AvoidBuggy = true

	tests := []struct {
		name     string
		pools    []Pool
		services []Service
		want     []string // addresses, or REASON: part of the message
	}{
		{"lowest first", []Pool{first}, []Service{svc("b"), svc("a")}, []string{"10.10.50.76", "10.10.50.75"}},
		{"older first", []Pool{first}, []Service{svc("a", func(s *Service) { s.Created = 9 }), svc("b")}, []string{"10.10.50.76", "10.10.50.75"}},
		{"what one has it keeps", []Pool{first}, []Service{svc("a"), svc("b", has("10.10.50.75"))}, []string{"10.10.50.76", "10.10.50.75"}},
		{"gaps are filled", []Pool{first}, []Service{svc("a", has("10.10.50.75")), svc("b", has("10.10.50.77")), svc("c")}, []string{"10.10.50.75", "10.10.50.77", "10.10.50.76"}},
		{"exhausted", []Pool{made(t, "p", true, "10.0.0.1/32")}, []Service{svc("a"), svc("b")}, []string{"10.0.0.1", "Exhausted: no IPv4 address is free in IPAddressPool p"}},
		{"no pool", nil, []Service{svc("a")}, []string{"Exhausted: there are none"}},
		{"wrong family", []Pool{six}, []Service{svc("a")}, []string{"Exhausted: no IPv4"}},
		{"request", []Pool{first}, []Service{svc("a", asks("10.10.50.77"))}, []string{"10.10.50.77"}},
		{"a request comes before others", []Pool{first}, []Service{svc("a"), svc("b", asks("10.10.50.75"))}, []string{"10.10.50.76", "10.10.50.75"}},
		{"request taken", []Pool{first}, []Service{svc("a", has("10.10.50.75")), svc("b", asks("10.10.50.75"))}, []string{"10.10.50.75", "Taken: taken by Service ns/a"}},
		{"request outside", []Pool{first}, []Service{svc("a", asks("10.9.9.9"))}, []string{"Outside: first (10.10.50.75-10.10.50.77)"}},
		{"request changed", []Pool{first}, []Service{svc("a", has("10.10.50.75"), asks("10.10.50.76"))}, []string{"10.10.50.76"}},
		{"request of a manual pool", []Pool{first, manual}, []Service{svc("a", asks("10.10.60.2"))}, []string{"10.10.60.2"}},
		{"request in another pool than named", []Pool{first, manual}, []Service{svc("a", asks("10.10.60.2"), func(s *Service) { s.Pool = "first" })}, []string{"Outside: is in IPAddressPool manual, not in first"}},
		{"manual pool", []Pool{manual}, []Service{svc("a"), svc("b", func(s *Service) { s.Pool = "manual" })}, []string{"Exhausted: manual", "10.10.60.0"}},
		{"pool unknown", []Pool{first}, []Service{svc("a", func(s *Service) { s.Pool = "nix" })}, []string{"Outside: IPAddressPool nix asked for does not exist"}},
		{"pool changed", []Pool{first, manual}, []Service{svc("a", has("10.10.50.75"), func(s *Service) { s.Pool = "manual" })}, []string{"10.10.60.0"}},
		{"pool gone", []Pool{manual, first}, []Service{svc("a", has("192.168.0.1"))}, []string{"10.10.50.75"}},
		{"manual keeps", []Pool{manual}, []Service{svc("a", has("10.10.60.1"))}, []string{"10.10.60.1"}},
		{"shared", []Pool{first}, []Service{svc("a", shares("k", 80)), svc("b", shares("k", 443)), svc("c", shares("x", 22))}, []string{"10.10.50.75", "10.10.50.75", "10.10.50.76"}},
		{"shared, same port", []Pool{first}, []Service{svc("a", shares("k", 80)), svc("b", shares("k", 80))}, []string{"10.10.50.75", "10.10.50.76"}},
		{"shared, other pods", []Pool{first}, []Service{svc("a", shares("k", 80), func(s *Service) { s.Backend = "app=a" }), svc("b", shares("k", 81))}, []string{"10.10.50.75", "10.10.50.76"}},
		{"two have the same", []Pool{first}, []Service{svc("a", has("10.10.50.75")), svc("b", has("10.10.50.75"))}, []string{"10.10.50.75", "10.10.50.76"}},
		{"dual", []Pool{first, six, both}, []Service{svc("a", dual(true))}, []string{"10.1.0.1, fc01::"}},
		{"dual, one is enough", []Pool{six}, []Service{svc("a", dual(false))}, []string{"fc00::10"}},
		{"dual, one is not enough", []Pool{six}, []Service{svc("a", dual(true))}, []string{"Exhausted: no IPv4 and IPv6"}},
		{"dual request", []Pool{both}, []Service{svc("a", dual(true), asks("10.1.0.5", "fc01::5"))}, []string{"10.1.0.5, fc01::5"}},
		{"request of half", []Pool{both}, []Service{svc("a", dual(true), asks("10.1.0.5"))}, []string{"Outside: families (IPv4 and IPv6)"}},
		{"allocation matches", []Pool{first, team}, []Service{svc("a", func(s *Service) { s.Labels = map[string]string{"tier": "web"} }), svc("b")}, []string{"10.2.0.1", "10.10.50.75"}},
		{"allocation forbids a request", []Pool{team}, []Service{svc("a", asks("10.2.0.1"))}, []string{"Outside: serviceAllocation"}},
		{"priority", []Pool{first, team, urgent}, []Service{svc("a", func(s *Service) {
			s.Labels, s.NamespaceLabels = map[string]string{"tier": "web"}, map[string]string{"env": "prod"}
		})}, []string{"10.3.0.1"}},
		{"buggy", []Pool{buggy}, []Service{svc("a"), svc("b", asks("10.4.1.0"))}, []string{"10.4.1.1", "Outside: not in one IPAddressPool"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Assign(tt.pools, tt.services, nil)
			for i, want := range tt.want {
				if reason, part, refused := strings.Cut(want, ": "); refused {
					if r := got[i].Refusal; r == nil || string(r.Reason) != reason || !strings.Contains(r.Message, part) {
						t.Errorf("%s: %+v, want %s", tt.services[i].Name, got[i], want)
						if r != nil {
							t.Log(r.Message)
						}
					}
					continue
				}
				if s := join(got[i].Addresses); s != want || got[i].Pool == "" {
					t.Errorf("%s: %s (%v), want %s", tt.services[i].Name, s, got[i].Refusal, want)
				}
			}
			// What was given stays when nothing changes.
			for i := range tt.services {
				tt.services[i].Current = got[i].Addresses
			}
			if d := cmp.Diff(got, Assign(tt.pools, tt.services, nil), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Errorf("not stable:\n%s", d)
			}
		})
	}
}

// Random histories: no two Services that may not share ever have one address, every address
// is of a pool, and who is untouched keeps what it has.
func TestAssignHistories(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pools := []Pool{made(t, "a", true, "10.0.0.0/29"), made(t, "b", true, "10.0.1.0/30", "fc00::/126")}
	var services []Service
	for step := range 2000 {
		switch n := len(services); {
		case n == 0 || rng.IntN(3) > 0 && n < 20:
			s := svc(string(rune('a'+rng.IntN(26))) + string(rune('a'+rng.IntN(26))))
			if slices.ContainsFunc(services, func(o Service) bool { return o.Name == s.Name }) {
				continue
			}
			if rng.IntN(4) == 0 {
				shares("k", int32(rng.IntN(3)))(&s)
			}
			if rng.IntN(4) == 0 {
				dual(rng.IntN(2) == 0)(&s)
			}
			services = append(services, s)
		default:
			i := rng.IntN(n)
			services = slices.Delete(services, i, i+1)
		}
		got := Assign(pools, services, nil)
		used := map[netip.Addr][]int{}
		for i, a := range got {
			if len(services[i].Current) > 0 && !slices.Equal(services[i].Current, a.Addresses) {
				t.Fatalf("step %d: %s moved from %v to %v", step, services[i].Name, services[i].Current, a.Addresses)
			}
			if (a.Addresses == nil) == (a.Refusal == nil) {
				t.Fatalf("step %d: %+v", step, a)
			}
			for _, x := range a.Addresses {
				for _, j := range used[x] {
					s, o := services[i], services[j]
					if s.ShareKey == "" || s.ShareKey != o.ShareKey || s.Ports[0] == o.Ports[0] {
						t.Fatalf("step %d: %s and %s both have %s", step, s.Name, o.Name, x)
					}
				}
				used[x] = append(used[x], i)
			}
			services[i].Current = a.Addresses
		}
	}
}

func TestParseRanges(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/30":             "10.0.0.0-10.0.0.3",
		"10.0.0.7/30":             "10.0.0.4-10.0.0.7",
		"10.10.50.75-10.10.50.90": "10.10.50.75-10.10.50.90",
		" 10.0.0.1 - 10.0.0.2 ":   "10.0.0.1-10.0.0.2",
		"fc00::/127":              "fc00::-fc00::1",
		"0.0.0.0/0":               "0.0.0.0-255.255.255.255",
	} {
		r, err := ParseRange(in)
		if err != nil || r.String() != want {
			t.Errorf("%q: %v, %v; want %s", in, r, err, want)
		}
	}
	for _, bad := range [][]string{{}, {"10.0.0.1"}, {"10.0.0.9-10.0.0.1"}, {"10.0.0.1-fc00::1"}, {"a-b"}, {"10.0.0.0/24", "10.0.0.5-10.0.0.6"}, {"fe80::1%eth0-fe80::2%eth0"}, {"::ffff:10.0.0.0/120"}} {
		if r, err := ParseRanges(bad); err == nil {
			t.Errorf("%q: %v, want an error", bad, r)
		}
	}
}

func TestOverlaps(t *testing.T) {
	z, a, m := made(t, "z", true, "10.0.0.0/24"), made(t, "a", true, "10.0.0.128/25"), made(t, "m", true, "10.0.1.0/24")
	z.Created, a.Created, m.Created = 2, 1, 3
	want := "IPAddressPool z: 10.0.0.0-10.0.0.255 overlaps 10.0.0.128-10.0.0.255 of IPAddressPool a, which is older"
	all, errs := Overlaps([]Pool{z, a, m})
	if len(all) != 3 || all[0].Name != "a" || all[0].Refused != nil || all[1].Refused == nil || all[2].Refused != nil ||
		len(errs) != 1 || !strings.Contains(errs[0].Error(), want) {
		t.Errorf("%v %v", all, errs)
	}
}

func TestSize(t *testing.T) {
	p := made(t, "p", true, "10.0.0.0/22", "10.1.0.1-10.1.0.9", "fc00::/120")
	if p.Size(IPv4) != 1033 || p.Size(IPv6) != 256 {
		t.Errorf("%d %d", p.Size(IPv4), p.Size(IPv6))
	}
	p.AvoidBuggy = true
	n := int64(0)
	for _, r := range p.Ranges {
		for a := r.From; r.Contains(a); a = a.Next() {
			if a.Is4() && p.Contains(a) {
				n++
			}
		}
	}
	if p.Size(IPv4) != n {
		t.Errorf("%d addresses without buggy ones, counted %d", p.Size(IPv4), n)
	}
	if big := made(t, "p", true, "::/0"); big.Size(IPv6) != 1<<63-1 {
		t.Errorf("%d", big.Size(IPv6))
	}
}

func FuzzParseRange(f *testing.F) {
	f.Add("10.0.0.0/24")
	f.Add("10.0.0.1-10.0.0.9")
	f.Add("fc00::/7")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRange(s)
		if err != nil || r.From.Is4In6() || r.To.Is4In6() { // these print as IPv4
			return
		}
		if !r.Contains(r.From) || !r.Contains(r.To) || r.To.Less(r.From) {
			t.Errorf("%q: %v", s, r)
		}
		if again, err := ParseRange(r.String()); err != nil || again != r {
			t.Errorf("%q: %v read back is %v, %v", s, r, again, err)
		}
	})
}

func BenchmarkAssign(b *testing.B) {
	pools := []Pool{made(b, "a", true, "10.0.0.0/16")}
	services := make([]Service, 1000)
	for i := range services {
		services[i] = svc(strings.Repeat("x", i%50) + string(rune('a'+i%26)))
	}
	for i, a := range Assign(pools, services, nil) {
		services[i].Current = a.Addresses
	}
	services[500].Current = nil
	for b.Loop() {
		Assign(pools, services, nil)
	}
}

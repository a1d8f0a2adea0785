package pool

import (
	"testing"
	"time"
)

// A freed address is kept for the Service that had it: not given to another one unless that asks for it,
// given back when the Service returns, and free after HoldTime.
func TestHolds(t *testing.T) {
	pools := []Pool{made(t, "p", true, "10.0.0.1-10.0.0.2")}
	now := time.Unix(1_000_000, 0)
	holds, changed := Holds(nil).Next([]Service{svc("a", has("10.0.0.1"))}, now)
	if !changed {
		t.Fatal("who has an address is not remembered")
	}
	if _, changed = holds.Next([]Service{svc("a", has("10.0.0.1"))}, now); changed {
		t.Fatal("changed, though nothing happened")
	}
	holds, changed = holds.Next(nil, now)
	if !changed || len(holds.Kept(&pools[0])) != 1 {
		t.Fatalf("not kept: %v", holds)
	}
	one := func(s Service) string {
		a := Assign(pools, []Service{s}, holds)[0]
		if a.Refusal != nil {
			return string(a.Refusal.Reason)
		}
		return join(a.Addresses)
	}
	for name, want := range map[string]string{"a": "10.0.0.1", "b": "10.0.0.2"} {
		if got := one(svc(name)); got != want {
			t.Errorf("%s gets %s, want %s", name, got, want)
		}
	}
	if got := one(svc("b", asks("10.0.0.1"))); got != "10.0.0.1" {
		t.Errorf("asked for by name: %s", got)
	}
	full := Assign(pools, []Service{svc("b", has("10.0.0.2")), svc("c")}, holds)[1]
	if full.Refusal == nil || full.Refusal.Reason != Exhausted ||
		full.Refusal.Message != "no IPv4 address is free in IPAddressPool p (10.0.0.1 is kept for an hour for the Service that had it; ask for it by name to have it now); add addresses to it" {
		t.Errorf("%+v", full.Refusal)
	}
	if holds, _ = holds.Next(nil, now.Add(HoldTime)); len(holds) != 0 {
		t.Errorf("kept for longer than %v: %v", HoldTime, holds)
	}
	if got := one(svc("b")); got != "10.0.0.1" {
		t.Errorf("after %v b gets %s", HoldTime, got)
	}
}

// An address that a Service has never moves because of a pool that comes, changes or goes elsewhere.
func TestOverlapMovesNobody(t *testing.T) {
	serving := made(t, "pool1", true, "10.10.50.75-10.10.50.90")
	serving.Created = 1
	extra := made(t, "extra", true, "10.10.50.90-10.10.50.95")
	extra.Created = 2
	services := []Service{svc("ingress", has("10.10.50.75")), svc("eastwest", has("10.10.50.90")), svc("new")}
	for i := range services {
		services[i].From = "pool1"
	}
	want := func(what string, pools []Pool, addresses ...string) {
		t.Helper()
		all, errs := Overlaps(pools)
		if len(errs) != 1 {
			t.Fatalf("%s: %v", what, errs)
		}
		for i, a := range Assign(all, services, nil) {
			if join(a.Addresses) != addresses[i] || a.Pool == "" {
				t.Errorf("%s: %s has %s of pool %q, want %s", what, services[i].Name, join(a.Addresses), a.Pool, addresses[i])
			}
		}
	}
	want("a newer pool overlaps", []Pool{extra, serving}, "10.10.50.75", "10.10.50.90", "10.10.50.76")
	serving.Created = 3 // the older of the two is the one that was edited
	want("an older pool was edited", []Pool{extra, serving}, "10.10.50.75", "10.10.50.90", "10.10.50.91")
}

package kube

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-mesh/carrick/mesh"
)

// sliceOf returns a slice of pods a, b, …: r is ready, u unready, t terminating, - not there.
func sliceOf(states string) *mesh.EndpointSlice {
	s := &mesh.EndpointSlice{Cluster: "c", Namespace: "ns", Name: "s", Service: "s"}
	for i, x := range states {
		if x != '-' {
			s.Endpoints = append(s.Endpoints, mesh.SliceEndpoint{Addresses: []string{fmt.Sprintf("10.0.0.%d", i)}, Pod: string(rune('a' + i)), Ready: x == 'r', Terminating: x == 't'})
		}
	}
	return s
}

// statesOf is what sliceOf was given, h for held.
func statesOf(s *mesh.EndpointSlice) (out string) {
	for _, e := range s.Endpoints {
		switch {
		case e.Held:
			out += "h"
		case e.Terminating:
			out += "t"
		case e.Ready:
			out += "r"
		default:
			out += "u"
		}
	}
	return out
}

// Endpoints that become unready from an API server's silence on stay, marked, until 30 seconds after it.
func TestGraceAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := map[mesh.Key]*mesh.EndpointSlice{}
		sink := Sink{Events: func(es []mesh.Event) {
			for _, e := range es {
				if s, ok := e.Object.(*mesh.EndpointSlice); ok {
					told[s.Key()] = s
				}
			}
		}}
		key := sliceOf("").Key()
		f := newFeed("c", sink, nil)
		step := func(what, states, want string) {
			t.Helper()
			if states != "" {
				f.set([]mesh.Event{{Object: sliceOf(states)}})
			}
			if got := statesOf(told[key]); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		f.goLive(nil)
		step("all ready", "rrru", "rrru")
		step("without silence nothing is held", "uuuu", "uuuu")
		step("ready again", "rrru", "rrru")
		f.hush(true)
		step("during the silence", "", "rrru")
		f.hush(false)
		step("in two strokes, one was unready before", "ruuu", "rhhu")
		step("in two strokes", "uuuu", "hhhu")
		step("one ends, one is back, one goes", "tr-u", "tru")
		step("unready again", "uu-u", "uhu")
		time.Sleep(29 * time.Second)
		f.release()
		step("not before its time", "", "uhu")
		time.Sleep(time.Second)
		f.release()
		step("after 30 seconds", "", "uuu")
		step("and from then on", "rrr", "rrr")
		step("nothing is held", "uuu", "uuu")

		// Other credentials in that time change nothing.
		step("ready", "rrr", "rrr")
		f.hush(true)
		next := newFeed("c", sink, nil)
		next.set([]mesh.Event{{Object: sliceOf("uuu")}})
		next.goLive(f)
		step("held by the next feed", "", "hhh")
		time.Sleep(graceTime)
		next.release()
		step("released by the next feed", "", "uuu")
	})
}

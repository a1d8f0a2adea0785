package proxy

import (
	"strings"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// Nothing that follows a request that asks for another protocol is passed on before the other side has
// agreed: an application that knows nothing of upgrades would take it for its next request, past routes
// and logs. Until then the client's connection keeps it.

// settleUpgrade decides on the client's wish to change the protocol, once the route is known; end says
// that the request has no body. A wish may be ignored (RFC 9110, 7.8), and is if it is not allowed, if the
// request has a body, for which there is no place beside the other protocol's bytes, and if it is for
// HTTP/2, which is not offered in this way.
func (s *stream) settleUpgrade(end bool) {
	switch {
	case s.connect:
		s.reqDone = s.reqDone && !s.upgradeAllowed() // if not, it is refused
	case !s.upgrade:
	case !end || !s.upgradeAllowed():
		s.ignoreUpgrade()
	default:
		s.reqDone = false // the other protocol's bytes may follow
	}
}

// ignoreUpgrade lets the request go on as one of HTTP/1.1.
func (s *stream) ignoreUpgrade() {
	s.req.Remove("upgrade")
	s.req.Remove("http2-settings")
	s.upgrade = false
}

// upgradeBy ignores the wish if u is not a connection of HTTP/1.
func (s *stream) upgradeBy(u upstream) {
	if !s.upgrade {
		return
	}
	if _, ok := u.(*upConn); ok {
		return
	}
	s.ignoreUpgrade()
	s.reqDone = true
	s.armTimeout()
}

// upgradeAllowed is asked once the route is known.
func (s *stream) upgradeAllowed() bool {
	name := strings.ToLower(s.req.First("upgrade"))
	if s.connect {
		name = "connect"
	}
	if name == "h2c" {
		return false
	}
	if s.route != nil && s.route.Action != nil {
		if ok, said := s.route.Action.Upgrades[name]; said {
			return ok
		}
	}
	return s.hcm.Upgrades[name]
}

// goOn returns the answer to Expect: 100-continue.
func goOn() *header.Header {
	h := new(header.Header)
	h.SetPseudo(header.Status, "100")
	return h
}

// upInformational passes on the 1xx response in s.resp: as Envoy only if the client's wish for 100 Continue
// is the application's to answer, and only those that have a meaning between two hops.
func (s *stream) upInformational(status int) {
	if !s.hcm.Proxy100Continue || s.responded {
		return
	}
	switch status {
	case 100:
		if !s.expect {
			return
		}
		s.expect = false
	case 102, 103:
	default:
		return
	}
	s.resp.Remove("content-length")
	s.resp.Remove("upgrade")
	s.down.sendInformational(&s.resp)
}

// armPerTry starts the attempt's time-out, which counts from the end of the request.
func (s *stream) armPerTry() {
	if p := s.retryPolicy(); p != nil && p.PerTryTimeout > 0 && s.reqDone && !s.responded && s.up != nil {
		s.w.loop.Arm(&s.perTry, p.PerTryTimeout)
	}
}

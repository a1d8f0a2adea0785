package ca

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Notice tells of a certificate of a CA that ends soon.
type Notice struct {
	Cert *x509.Certificate
	// Stage is 30, 7 or 1 if the certificate ends within so many days, 0 if it has ended.
	Stage int
	// Text says what ends and when, in days that are left, and Fix what to do about it.
	Text, Fix string
}

func (n Notice) String() string { return n.Text + "; " + n.Fix }

// day is of 24 hours: certificates know no calendar.
const day = 24 * time.Hour

// Notices returns one notice for each certificate of the chain that has ended at now, or ends in 30
// days or less, in the chain's order. secret is the name of the Secret that the chain is from.
func Notices(secret string, chain []*x509.Certificate, now time.Time) (all []Notice) {
	for _, c := range chain {
		left := c.NotAfter.Sub(now)
		i := slices.IndexFunc([]int{0, 1, 7, 30}, func(days int) bool { return left <= time.Duration(days)*day })
		if i < 0 {
			continue
		}
		n := Notice{Cert: c, Stage: []int{0, 1, 7, 30}[i]}
		kind := "intermediate CA"
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			kind = "root CA"
		}
		when := "has ended"
		switch {
		case left > 2*day:
			when = fmt.Sprintf("ends in %d days", int(left/day))
		case left > time.Hour:
			when = fmt.Sprintf("ends in %d hours", int(left/time.Hour))
		case left > 0:
			when = "ends within the hour"
		}
		n.Text = fmt.Sprintf("%s of Secret %s (%s) %s, on %s, and then no workload's certificate is valid", kind, secret, c.Subject, when, c.NotAfter.UTC().Format(time.RFC3339))
		switch {
		case secret == SelfSignedSecret:
			n.Fix = "make it anew: carrick ca renew"
		case kind == "root CA":
			n.Fix = "make a new root, have every cluster trust it beside the old one, then sign under it (docs/upgrade.md): carrick ca root, carrick ca intermediate CLUSTER, carrick ca install CLUSTER --replace"
		default:
			n.Fix = "make it anew from the root's key: carrick ca renew --root-key PATH"
		}
		all = append(all, n)
	}
	return all
}

// chain returns the signer's certificates, from the one that signs up to the root.
func (s *Signer) chain() []*x509.Certificate { return append(s.intermediates(), s.anchor) }

// secret returns the name of the Secret that the signer is from.
func (s *Signer) secret() string {
	if s.selfSigned {
		return SelfSignedSecret
	}
	return PluggedInSecret
}

// tell logs and reports what is wrong with the CA, whenever that changes: with the days left, so
// once a day while an end is near.
func (a *Authority) tell() {
	var now []string
	secret := PluggedInSecret
	if st := a.state.Load(); st.signer != nil {
		secret = st.signer.secret()
		for _, n := range Notices(secret, st.signer.chain(), time.Now()) {
			if s := n.String(); !slices.Contains(a.lastNotices, s) {
				if n.Stage > 1 {
					a.cfg.Log.Warn(s)
				} else {
					a.cfg.Log.Error(s)
				}
			}
			now = append(now, n.String())
		}
		for _, n := range st.signer.listNotices(time.Now()) {
			if !slices.Contains(a.lastNotices, n) {
				a.cfg.Log.Error(n)
			}
			now = append(now, n)
		}
	}
	if a.lastProblem != "" { // logged when it came
		secret = PluggedInSecret
		now = append(now, "refused, the last good CA stays: "+a.lastProblem)
	}
	if slices.Equal(now, a.lastNotices) {
		return
	}
	a.lastNotices = now
	if a.cfg.Report != nil {
		a.cfg.Report(secret, now)
	}
}

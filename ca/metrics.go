package ca

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics have istiod's names.
type metrics struct {
	requests, issued, badRequests, authFailures, signFailures prometheus.Counter
	rootExpiry, chainExpiry, rootLeft, chainLeft              prometheus.GaugeFunc
}

func newMetrics(a *Authority) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	expiry := func(name, help string, of func(*Signer) float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if s := a.Signer(); s != nil {
				return of(s)
			}
			return -1
		})
	}
	return &metrics{
		requests:     counter("citadel_server_csr_count", "The number of CSRs received."),
		issued:       counter("citadel_server_success_cert_issuance_count", "The number of certificates issued."),
		badRequests:  counter("citadel_server_csr_parsing_err_count", "The number of CSRs that could not be parsed."),
		authFailures: counter("citadel_server_authentication_failure_count", "The number of requests whose caller was not accepted."),
		signFailures: counter("citadel_server_csr_sign_err_count", "The number of CSRs that could not be signed."),
		rootExpiry: expiry("citadel_server_root_cert_expiry_timestamp", "When the signer's root expires, Unix seconds; -1 without a signer.",
			func(s *Signer) float64 { return float64(s.anchor.NotAfter.Unix()) }),
		chainExpiry: expiry("citadel_server_cert_chain_expiry_timestamp", "When the first certificate from the signer to its root expires, Unix seconds; -1 without a signer.",
			func(s *Signer) float64 { return float64(s.NotAfter().Unix()) }),
		rootLeft: expiry("citadel_server_root_cert_expiry_seconds", "Seconds until the signer's root expires, negative when it has; -1 without a signer.",
			func(s *Signer) float64 { return time.Until(s.anchor.NotAfter).Seconds() }),
		chainLeft: expiry("citadel_server_cert_chain_expiry_seconds", "Seconds until the first certificate from the signer to its root expires, negative when it has; -1 without a signer.",
			func(s *Signer) float64 { return time.Until(s.NotAfter()).Seconds() }),
	}
}

// Collectors returns the CA's metrics for a Prometheus registry.
func (a *Authority) Collectors() []prometheus.Collector {
	m := a.metrics
	return []prometheus.Collector{m.requests, m.issued, m.badRequests, m.authFailures, m.signFailures, m.rootExpiry, m.chainExpiry, m.rootLeft, m.chainLeft}
}

package admin

import (
	"net/http"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrick-mesh/carrick/certs"
)

// secrets returns all secrets: the owner's and those of the configuration.
func (h *handler) secrets() []Secret {
	var out []Secret
	if h.o.Secrets != nil {
		out = h.o.Secrets()
	}
	for _, s := range h.o.Config().Secrets {
		x := Secret{Name: s.Name}
		if s.Certificate != nil {
			x.Chain = s.Certificate.Chain.Inline
		}
		if s.Validation != nil {
			x.Roots = s.Validation.CA.Inline
		}
		out = append(out, x)
	}
	return out
}

func (h *handler) certs(w http.ResponseWriter, _ *http.Request) {
	out := &adminv3.Certificates{}
	var c adminv3.Certificate
	for _, s := range h.secrets() {
		if len(s.Roots) > 0 {
			c.CaCert = append(c.CaCert, details(s.Roots)...)
		}
		if len(s.Chain) > 0 {
			c.CertChain = append(c.CertChain, details(s.Chain)...)
		}
	}
	if len(c.CaCert)+len(c.CertChain) > 0 {
		out.Certificates = append(out.Certificates, &c)
	}
	writeJSON(w, out)
}

func details(b []byte) []*adminv3.CertificateDetails {
	var out []*adminv3.CertificateDetails
	all, _ := certs.Certificates(b) // a dump shows what it can
	for _, c := range all {
		d := &adminv3.CertificateDetails{
			Path: "<inline>", SerialNumber: c.SerialNumber.Text(16),
			ValidFrom: timestamppb.New(c.NotBefore), ExpirationTime: timestamppb.New(c.NotAfter),
			DaysUntilExpiration: uint64(max(time.Until(c.NotAfter), 0) / (24 * time.Hour)),
		}
		for _, u := range c.URIs {
			d.SubjectAltNames = append(d.SubjectAltNames, &adminv3.SubjectAlternateName{Name: &adminv3.SubjectAlternateName_Uri{Uri: u.String()}})
		}
		for _, n := range c.DNSNames {
			d.SubjectAltNames = append(d.SubjectAltNames, &adminv3.SubjectAlternateName{Name: &adminv3.SubjectAlternateName_Dns{Dns: n}})
		}
		for _, ip := range c.IPAddresses {
			d.SubjectAltNames = append(d.SubjectAltNames, &adminv3.SubjectAlternateName{Name: &adminv3.SubjectAlternateName_IpAddress{IpAddress: ip.String()}})
		}
		out = append(out, d)
	}
	return out
}

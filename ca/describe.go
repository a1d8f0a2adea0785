package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strings"
	"time"
)

// describe is the log line for a certificate, as istiod writes it.
func describe(c *x509.Certificate) string {
	return fmt.Sprintf("x509 cert - Issuer: %q, Subject: %q, SN: %x, NotBefore: %q, NotAfter: %q",
		c.Issuer, c.Subject, c.SerialNumber, c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339))
}

// fingerprint is the SHA-256 of a certificate as openssl prints it: AA:BB:…
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	parts := make([]string, len(sum))
	for i, b := range sum {
		parts[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(parts, ":")
}

// Fingerprint returns the SHA-256 of a certificate as openssl prints it: AA:BB:…
func Fingerprint(c *x509.Certificate) string { return fingerprint(c) }

// Package certs reads certificates, private keys and revocation lists from PEM, and says where a
// text is damaged and what is revoked; whom to trust is for its callers to say.
package certs

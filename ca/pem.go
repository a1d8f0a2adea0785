package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// maxPEM bounds every PEM input. A Secret or ConfigMap cannot be larger (1 MiB in Kubernetes).
const maxPEM = 1 << 20

// ParseCertificates reads all CERTIFICATE blocks of a PEM bundle, in order. Text between the
// blocks is ignored. At least one certificate must be there.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxPEM {
		return nil, fmt.Errorf("%d bytes of PEM, more than %d", len(data), maxPEM)
	}
	var certs []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if len(bytes.TrimSpace(data)) == 0 {
				return nil, errors.New("is empty")
			}
			if len(certs) == 0 {
				return nil, errors.New("holds no PEM block of type CERTIFICATE")
			}
			if bytes.Contains(rest, []byte("-----BEGIN ")) {
				return nil, fmt.Errorf("is cut off or damaged after certificate %d", len(certs))
			}
			return certs, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a PEM block of type %q where a CERTIFICATE is expected", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
}

// ParseKey reads the private key of a PEM file: PKCS#8 ("PRIVATE KEY"), PKCS#1 ("RSA PRIVATE
// KEY") or SEC1 ("EC PRIVATE KEY", also after openssl's "EC PARAMETERS"). RSA keys have at
// least 2048 bits.
func ParseKey(data []byte) (crypto.Signer, error) {
	if len(data) > maxPEM {
		return nil, fmt.Errorf("%d bytes of PEM, more than %d", len(data), maxPEM)
	}
	for rest := data; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if len(bytes.TrimSpace(data)) == 0 {
				return nil, errors.New("is empty")
			}
			return nil, errors.New("holds no PEM block with a private key")
		}
		if block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY" {
			return nil, errors.New("is encrypted; decrypt it with: openssl pkey -in KEY -out ca-key.pem")
		}
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "EC PARAMETERS":
			continue
		default:
			return nil, fmt.Errorf("holds a PEM block of type %q where a private key is expected", block.Type)
		}
		if err != nil {
			// The parser's own message may quote key bytes.
			return nil, fmt.Errorf("holds a %s that cannot be parsed", block.Type)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("holds a %T, which cannot sign", key)
		}
		if err := checkPublic(signer.Public()); err != nil {
			return nil, err
		}
		return signer, nil
	}
}

// checkPublic refuses keys too weak to be signed or to sign.
func checkPublic(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("RSA key of %d bits, want 2048 to 8192", n)
		}
	case *ecdsa.PublicKey:
		if n := k.Curve.Params().BitSize; n < 256 {
			return fmt.Errorf("EC key of %d bits, want at least 256", n)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("key of type %T, want RSA, EC or Ed25519", pub)
	}
	return nil
}

// EncodeCertificates returns certificates as PEM, in their order.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

package certs

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

// Types of PEM blocks.
const (
	typeCertificate = "CERTIFICATE"
	typeCRL         = "X509 CRL"
)

// Certificates reads all CERTIFICATE blocks of a PEM text, in order. At least one must be there,
// and nothing but certificates. With an error it returns the certificates before the fault.
func Certificates(data []byte) (all []*x509.Certificate, err error) {
	bs, damage := blocks(data)
	for _, b := range bs {
		if b.Type != typeCertificate {
			return all, b.wrong(fmt.Sprintf("it is of type %q where a CERTIFICATE is expected", b.Type))
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return all, b.wrong(err.Error())
		}
		all = append(all, c)
	}
	if damage == nil && len(all) == 0 {
		damage = errors.New("holds no PEM block of type CERTIFICATE")
	}
	return all, damage
}

// Anchors reads trust anchors as Envoy's trusted_ca holds them: certificates, and revocation lists
// beside them; blocks of other types are skipped. At least one certificate must be there.
func Anchors(data []byte) (anchors []*x509.Certificate, lists []*x509.RevocationList, err error) {
	bs, err := blocks(data)
	if err != nil {
		return nil, nil, err
	}
	for _, b := range bs {
		switch b.Type {
		case typeCertificate:
			c, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return nil, nil, b.wrong(err.Error())
			}
			anchors = append(anchors, c)
		case typeCRL:
			l, err := x509.ParseRevocationList(b.Bytes)
			if err != nil {
				return nil, nil, b.wrong(err.Error())
			}
			lists = append(lists, l)
		}
	}
	if len(anchors) == 0 {
		return nil, nil, errors.New("holds no PEM block of type CERTIFICATE")
	}
	return anchors, lists, nil
}

// RevocationLists reads all X509 CRL blocks of a PEM text, in order. At least one must be there.
func RevocationLists(data []byte) (all []*x509.RevocationList, err error) {
	bs, err := blocks(data)
	if err != nil {
		return nil, err
	}
	for _, b := range bs {
		if b.Type != typeCRL {
			return nil, b.wrong(fmt.Sprintf("it is of type %q where an X509 CRL is expected", b.Type))
		}
		l, err := x509.ParseRevocationList(b.Bytes)
		if err != nil {
			return nil, b.wrong(err.Error())
		}
		all = append(all, l)
	}
	if len(all) == 0 {
		return nil, errors.New("holds no PEM block of type X509 CRL")
	}
	return all, nil
}

// Key reads the private key of a PEM text: PKCS#8 ("PRIVATE KEY"), PKCS#1 ("RSA PRIVATE KEY") or
// SEC1 ("EC PRIVATE KEY", also after openssl's "EC PARAMETERS"). RSA keys have at least 2048
// bits. No error quotes the key.
func Key(data []byte) (crypto.Signer, error) {
	bs, err := blocks(data)
	if err != nil {
		return nil, err
	}
	var key any
	for _, b := range bs {
		if b.Headers["DEK-Info"] != "" || b.Type == "ENCRYPTED PRIVATE KEY" {
			return nil, errors.New("is encrypted; decrypt it with: openssl pkey -in KEY -out NEW-KEY")
		}
		if key != nil {
			return nil, b.wrong(fmt.Sprintf("it is of type %q where the text should end: one private key is expected", b.Type))
		}
		switch b.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(b.Bytes)
		case "EC PARAMETERS":
			continue
		default:
			return nil, b.wrong(fmt.Sprintf("it is of type %q where a private key is expected", b.Type))
		}
		if err != nil {
			// The parser's own message may quote key bytes.
			return nil, b.wrong("the " + b.Type + " cannot be parsed")
		}
	}
	if key == nil {
		return nil, errors.New("holds no PEM block with a private key")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("holds a %T, which cannot sign", key)
	}
	return signer, CheckPublic(signer.Public())
}

// CheckPublic refuses keys too weak to be signed or to sign.
func CheckPublic(pub crypto.PublicKey) error {
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

// Encode returns certificates as PEM, in their order.
func Encode(all ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range all {
		b.WriteString(EncodeDER(c.Raw))
	}
	return b.Bytes()
}

// EncodeDER returns one certificate in DER form as PEM.
func EncodeDER(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: der}))
}

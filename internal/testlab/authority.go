package testlab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Authority is a certificate authority that exists for one test. Never make the
// system trust it.
type Authority struct {
	Cert *x509.Certificate
	File string // has the certificate in PEM

	key    *ecdsa.PrivateKey // of the authority and of all that it certifies
	serial atomic.Int64

	mu    sync.Mutex
	certs map[string]*tls.Certificate
}

// NewAuthority makes an authority with a key of its own.
func NewAuthority(t T) *Authority {
	t.Helper()
	a := &Authority{File: filepath.Join(t.TempDir(), "ca.pem"), certs: make(map[string]*tls.Certificate)}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	cert, err := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "caddytarget test CA"},
		IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	if err != nil {
		t.Fatal(err)
	}
	a.Cert = cert.Leaf
	writePEM(t, a.File, "CERTIFICATE", a.Cert.Raw)
	return a
}

// sign completes and signs a certificate; the first one signs itself.
func (a *Authority) sign(template *x509.Certificate) (*tls.Certificate, error) {
	template.SerialNumber = big.NewInt(a.serial.Add(1))
	// valid in a bubble of synctest as well, whose clock begins in 2000
	template.NotBefore, template.NotAfter = time.Unix(0, 0), time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	parent := a.Cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key, Leaf: leaf}, err
}

// Issue makes a certificate for names and IP addresses.
func (a *Authority) Issue(subjects ...string) (*tls.Certificate, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: subjects[0]}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, subject := range subjects {
		if addr, err := netip.ParseAddr(subject); err == nil {
			template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, subject)
		}
	}
	return a.sign(template)
}

// CertFor returns the certificate for a name or an IP address. It is issued once.
func (a *Authority) CertFor(name string) (cert *tls.Certificate, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.certs[name] == nil {
		if cert, err = a.Issue(name); err != nil {
			return nil, err
		}
		a.certs[name] = cert
	}
	return a.certs[name], nil
}

// Config returns the configuration of a TLS server that has a certificate for the
// server name of each client. Protocols are those of ALPN.
func (a *Authority) Config(protocols ...string) *tls.Config {
	return &tls.Config{
		NextProtos:     protocols,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return a.CertFor(hello.ServerName) },
	}
}

// Pool returns a pool that has the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return pool
}

// Files writes the certificate for a name, and its key, to files.
func (a *Authority) Files(t T, name string) (certFile, keyFile string) {
	t.Helper()
	cert, err := a.CertFor(name)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePEM(t, certFile, "CERTIFICATE", cert.Certificate[0])
	writePEM(t, keyFile, "PRIVATE KEY", key)
	return certFile, keyFile
}

func writePEM(t T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

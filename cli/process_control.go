package cli

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/site"
)

// controlFlags are those of a control plane that is more than one process: its members, its
// seal, an etcd cluster elsewhere. The function that they return reads the files they name.
func controlFlags(fl *pflag.FlagSet, c *site.Config) (read func() error) {
	m := &c.Member
	var joinFile, etcdCA, etcdCert, etcdKey string
	fl.StringVar(&m.Name, "member", "", "be one of several machines that are the control plane: `NAME` of this one, a DNS label")
	fl.StringVar(&m.Listen, "member-listen", "0.0.0.0:8442", "address and port for other members")
	fl.StringVar(&m.StoreListen, "store-listen", "0.0.0.0:8443", "address and port for the stores of other members")
	fl.StringSliceVar(&m.Join, "join-site", nil, "join the members of the site that answers at https://HOST:PORT")
	fl.StringVar(&m.JoinToken, "join", "", "with this one-time `TOKEN`")
	fl.StringVar(&joinFile, "join-file", "", "`FILE` with the token: keeps it out of the list of processes")
	fl.StringVar(&c.UnsealFile, "unseal-file", "", "`FILE` that opens the seal of the authority's key (unseal.key in the directory; a new site makes it)")
	fl.StringSliceVar(&c.EtcdEndpoints, "etcd-endpoints", nil, "an etcd cluster instead of the embedded store")
	fl.StringVar(&etcdCA, "etcd-ca", "", "`FILE` with the certificate of that cluster's authority, PEM")
	fl.StringVar(&etcdCert, "etcd-cert", "", "`FILE` with a client's certificate for it, PEM")
	fl.StringVar(&etcdKey, "etcd-key", "", "`FILE` with the key of that, PEM")
	return func() (err error) {
		for i, u := range m.Join {
			m.Join[i] = hostPort(u)
		}
		if joinFile != "" {
			token, err := os.ReadFile(joinFile)
			if err != nil {
				return fileFault(err)
			}
			m.JoinToken = strings.TrimSpace(string(token))
		}
		c.EtcdTLS, err = etcdTLS(etcdCA, etcdCert, etcdKey)
		return err
	}
}

// etcdTLS of a client of an etcd cluster; nil: plain text.
func etcdTLS(ca, cert, key string) (*tls.Config, error) {
	if ca == "" && cert == "" && key == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, fileFault(err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fault.New(fault.Malformed, "--etcd-ca %s: no certificate in PEM", ca)
		}
	}
	if (cert == "") != (key == "") {
		return nil, fault.New(fault.Malformed, "a certificate for etcd needs its key, and the key its certificate").Try("reservoir site --etcd-cert FILE --etcd-key FILE")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fault.New(fault.Malformed, "--etcd-cert %s, --etcd-key %s: %w", cert, key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// hostPort of https://HOST[:PORT].
func hostPort(u string) string {
	at := strings.TrimSuffix(strings.TrimPrefix(u, "https://"), "/")
	if _, _, err := net.SplitHostPort(at); err != nil && at != "" {
		at = net.JoinHostPort(strings.Trim(at, "[]"), "443")
	}
	return at
}

package site

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// checkListener refuses what accounting information must not be sent to.
func checkListener(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fault.New(fault.Malformed, "accounting listener %q: want https://HOST[:PORT]/PATH", text)
	}
	return nil
}

// listener makes the clients of accounting listeners. A caller chooses among the URLs that
// the operator has allowed, and among no others: the site's process can reach what its
// callers cannot, and must not be sent there in their name. Redirects are not followed, and
// the answer is not passed on. The listener proves itself by a certificate of a public
// authority or of this site's, and the site by its own.
func (s *site) listener() func(string) (vmi.AccountingListener, error) {
	allowed := s.cfg.AccountingListeners
	if len(allowed) == 0 {
		return nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool() // a machine without any: this site's authority alone
	}
	roots.AppendCertsFromPEM(s.ca.Bundle())
	id, err := identity.SiteID(s.cfg.Name)
	if err != nil { // names are checked when a site starts
		panic("site " + s.cfg.Name + ": " + err.Error())
	}
	client := &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, GetClientCertificate: s.keys.ClientTLS(id).GetClientCertificate},
			ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 2, MaxResponseHeaderBytes: 64 << 10,
			DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it redirects, which is not followed") },
	}
	return func(text string) (vmi.AccountingListener, error) {
		if !slices.Contains(allowed, text) {
			return nil, fault.New(fault.Denied, "accounting information may not be sent to %q", text).
				Try("ask the site's operator to allow it: reservoir site --accounting-listener %s", text)
		}
		u, err := url.Parse(text)
		if err != nil {
			return nil, fault.New(fault.Malformed, "accounting listener %q: %w", text, err)
		}
		return vmi.NewAccountingListener(&httpapi.Client{Base: u.Scheme + "://" + u.Host, HTTP: client}, u.EscapedPath()), nil
	}
}

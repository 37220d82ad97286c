package identity

import (
	"context"
	"net/http"
	"strings"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Authenticator tells who makes a request, by its API token or else by the certificate
// that the TLS handshake has verified (Keypair.ServerTLS).
type Authenticator struct {
	Site   string
	Tokens *Tokens // nil: certificates only, as on hosts
	// Trust is who of other sites has a role here; nil: nobody.
	Trust *Trust
	// Admit may refuse a caller that has proven itself, such as a host that was removed
	// while its certificate lives on. nil admits all.
	Admit func(context.Context, Caller) error
}

// Caller of r. fault.Unauthenticated when r proves nothing, fault.TokenInvalid,
// fault.Denied when the identity has no role here.
func (a *Authenticator) Caller(r *http.Request) (Caller, error) {
	c, err := a.prove(r)
	if err == nil && a.Admit != nil {
		err = a.Admit(r.Context(), c)
	}
	if err != nil {
		return Caller{}, err
	}
	return c, nil
}

func (a *Authenticator) prove(r *http.Request) (Caller, error) {
	if r.TLS == nil {
		return Caller{}, fault.New(fault.Unauthenticated, "the connection is not encrypted").Try("use https://")
	}
	if h := r.Header.Get("Authorization"); h != "" {
		scheme, text, _ := strings.Cut(h, " ")
		if _, password, basic := r.BasicAuth(); basic { // clients that know no other way: the token is the password
			scheme, text = "Bearer", password
		}
		if !strings.EqualFold(scheme, "Bearer") || a.Tokens == nil {
			return Caller{}, fault.New(fault.Unauthenticated, "the Authorization header has no token that is of use here")
		}
		return a.Tokens.Verify(r.Context(), Secret(strings.TrimSpace(text)))
	}
	if len(r.TLS.VerifiedChains) == 0 {
		return Caller{}, fault.New(fault.Unauthenticated, "the request has neither a token nor a certificate")
	}
	id, err := x509svid.IDFromCert(r.TLS.PeerCertificates[0])
	if err != nil {
		return Caller{}, fault.New(fault.Denied, "the client's certificate: %w", err)
	}
	if a.Trust != nil && id.TrustDomain().Name() != a.Site {
		return a.Trust.Caller(r)
	}
	return callerOf(a.Site, id)
}
